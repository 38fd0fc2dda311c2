//! What `ci/demo` shows: the probe on this host's KVM, its move to another
//! machine, and a stock Debian guest, in the lab or on this host.

mod debian;
mod migration;
mod page;
mod probe;

use std::fs::{self, File};

use anyhow::Result;

use page::Page;

/// Where the Debian guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this host if its CPU and `/dev/kvm` can, else in the lab.
    Best,
    /// On this host.
    Host,
    /// In an emulated server.
    Lab,
}

/// Shows all of it.
///
/// # Errors
/// If a guest does not do what it should.
pub fn show(place: Place) -> Result<()> {
    let page = Page::new();
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    match kvm {
        Ok(_) => {
            probe::show(&page)?;
            migration::show(&page)?;
        }
        Err(error) => page.note(&format!("No probe here: /dev/kvm does not open ({error}).")),
    }
    let on_host = match place {
        Place::Best => runs_linux(),
        Place::Host => true,
        Place::Lab => false,
    };
    debian::show(&page, on_host)
}

/// Whether KVM here has hardware to run a kernel on.
fn runs_linux() -> bool {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpus
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or("");
    let has_hardware = flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    has_hardware
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}
