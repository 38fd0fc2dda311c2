//! The server that all tests here share.

use std::path::Path;
use std::sync::LazyLock;

use pindah_lab::{Artifacts, Flavour, Kernel, Lab, Server};

struct Host {
    lab: Lab,
    server: Server,
}

/// An emulated server; or this host, where `PINDAH_LAB=host` says that its
/// `/dev/kvm` runs Linux. A host that fails to start fails every test at once.
static HOST: LazyLock<Host> = LazyLock::new(|| {
    let lab = Lab::new("vmm").unwrap();
    let on_host = std::env::var("PINDAH_LAB").is_ok_and(|lab| lab == "host");
    let server = if on_host {
        lab.host().unwrap()
    } else {
        lab.server("node").cpus(2).memory_mib(2560).start().unwrap()
    };
    Host { lab, server }
});

/// The server.
pub fn server() -> &'static Server {
    &HOST.server
}

/// The lab around it.
pub fn lab() -> &'static Lab {
    &HOST.lab
}

/// What guests are made of.
pub fn artifacts() -> &'static Artifacts {
    HOST.lab.artifacts()
}

/// Debian's kernel of this version and flavour.
pub fn kernel(version: &str, flavour: Flavour) -> Kernel {
    artifacts().kernel(version, flavour).unwrap()
}

/// A copy of an artifact that a test may write to.
pub fn copy(artifact: &Path, name: &str) -> String {
    let to = format!("/root/{name}");
    let from = server().artifact(artifact);
    server()
        .check(&format!("cp --sparse=always {} {to}", from.display()))
        .unwrap();
    to
}
