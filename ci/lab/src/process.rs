//! Child processes that cannot outlive us.
//!
//! The kernel kills each child when the thread that forked it ends (parent
//! death signal). Tests run on threads that come and go, so one thread that
//! never ends forks them all.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

/// What a child gets besides its command line.
#[derive(Default)]
pub struct Inheritance {
    /// Network namespace to run in.
    pub namespace: Option<Arc<OwnedFd>>,
    /// Descriptors that stay open in it, under the same numbers.
    pub descriptors: Vec<OwnedFd>,
}

/// A child that is killed and reaped when this is dropped.
pub struct BoundChild(Child);

impl BoundChild {
    /// Starts `command`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut command: Command, inheritance: Inheritance) -> Result<Self> {
        let program = command.get_program().to_owned();
        let prepare = move || prepare_child(&inheritance);
        // SAFETY: `prepare_child` makes system calls only and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        let (reply, answer) = channel();
        spawner()
            .send((command, reply))
            .ok()
            .context("the spawning thread has ended")?;
        let child = answer
            .recv()
            .context("the spawning thread has ended")?
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    /// The exit status if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for the end, `None` if it has not come before `deadline`.
    pub fn wait_until(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Kills and reaps it; nothing if it has ended.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for BoundChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Between fork and exec.
fn prepare_child(inheritance: &Inheritance) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if let Some(namespace) = &inheritance.namespace {
        setns(namespace.as_ref(), CloneFlags::CLONE_NEWNET)?;
    }
    for descriptor in &inheritance.descriptors {
        let keep = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(descriptor, keep)?;
    }
    Ok(())
}

type Request = (Command, Sender<io::Result<Child>>);

fn spawner() -> &'static Sender<Request> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (sender, receiver) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in receiver {
                // Nobody waits for the answer any more: the child is dropped with it.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    })
}

/// The number under which a child sees an inherited descriptor.
pub fn number(descriptor: &OwnedFd) -> i32 {
    descriptor.as_raw_fd()
}
