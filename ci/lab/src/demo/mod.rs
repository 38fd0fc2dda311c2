//! What `ci/demo` shows: a small office on this host's KVM, in which guests move, and a stock
//! Debian guest, in the lab or on this host.

mod debian;
mod office;
mod page;
mod site;

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

/// Shows all of it; with `keep` the office stays until somebody presses Enter.
///
/// # Errors
/// If a guest does not do what it should.
pub fn show(place: Place, keep: bool) -> Result<()> {
    let page = Page::new();
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    match kvm {
        Ok(_) => office::show(&page, keep)?,
        Err(error) => page.note(&format!(
            "No office here: /dev/kvm does not open ({error})."
        )),
    }
    if keep {
        return Ok(());
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
