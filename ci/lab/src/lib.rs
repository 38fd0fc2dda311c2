//! The lab: emulated servers with a real `/dev/kvm` in them.
//!
//! QEMU's TCG emulates a CPU with SVM and nested paging, so a server started
//! here runs an unmodified Debian kernel, loads `kvm-amd`, and can run Pindah
//! with unmodified Debian guests. No right but root is asked of the host, and
//! no virtualization.
//!
//! ```text
//!  test ── Lab ── Network      a namespace without a name: bridge and taps
//!           │
//!           ├─ Artifacts       kernels, disks, initramfs; cached in .cache/lab
//!           ├─ Nas             NFS 4 on the switch, where servers share disks
//!           ├─ San             an iSCSI target there, with a LUN
//!           ├─ BareServer      firmware and a medium, a serial console, no agent
//!           ├─ Dhcp            addresses for these
//!           └─ Server ─ QEMU   serial log in target/lab/<lab>/<server>.log
//!                └─ Channel ═ virtio-serial ═ agent ─ commands
//! ```
//!
//! Nothing outlives the process that made it: QEMU dies with it (parent death
//! signal), the namespace with its last user, and disks are written to files
//! that have no name. Absolute times in the lab mean nothing; logic does.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = pindah_lab::Lab::new("example")?;
//! let server = lab.server("a").memory_mib(1536).start()?;
//! assert_eq!(server.run("uname -s")?.ok()?.text(), "Linux\n");
//! # Ok(())
//! # }
//! ```

pub mod artifacts;
pub mod bare;
mod channel;
pub mod demo;
pub mod dhcp;
pub mod guest;
mod lab;
pub mod nas;
pub mod network;
mod output;
mod paths;
pub mod pictures;
pub mod ping;
mod process;
pub mod san;
mod server;
pub mod wire;

pub use artifacts::{Artifacts, Flavour, Kernel};
pub use channel::Process;
pub use lab::Lab;
pub use network::Network;
pub use output::Output;
pub use paths::{product, repository};
pub use server::{Server, ServerBuilder, start_all};
