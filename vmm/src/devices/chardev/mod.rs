//! The host side of a character device: where a serial port's or a console's bytes go and where
//! they come from.
//!
//! ```text
//! vCPU, worker ─ write ─► OutputLog ◄─ position ─ standard output or file
//!                         (64 KiB)  ◄─ position ─ client   (socket, or attached by the API)
//!                                   ◄─ position ─ client
//!      device ◄─ read_input ─ input ◄─────────── standard input, clients
//! ```
//!
//! A device only appends to a log in memory; one thread, the hub, brings it to the readers. Every
//! reader is a position in that log, so a client that connects late gets the history first, and
//! one that hangs costs nothing but its own oldest output: the guest is never held up. Only
//! standard output and a file have a longer backlog ([`BACKLOG_BYTES`]).
//!
//! [`open`] does all that needs a path. The hub opens nothing.

mod client;
mod escape;
mod hub;
mod open;
mod output_log;
mod sink;
mod state;
mod stdin;
pub mod terminal;

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::open::{ChardevResources, OpenChardevError, SocketResources, StdioResources, open};
pub use self::output_log::{BACKLOG_BYTES, HISTORY_BYTES};
pub(crate) use self::state::byte_string;

use self::hub::Hub;
use self::output_log::OutputLog;
use crate::sandbox::{self, ThreadKind};

/// Input that waits for the device, at most; more stays in the kernel's buffers.
pub(crate) const INPUT_BYTES: usize = 4096;

/// What the hub and the device share. No lock is held while another is taken.
struct Shared {
    output: Mutex<OutputLog>,
    input: Mutex<Input>,
    control: Mutex<Control>,
    /// Wakes the hub.
    wake: EventFd,
    /// Called by the hub when input has come.
    on_input: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// The hub reads no more until the device has taken some.
    full: bool,
}

#[derive(Default)]
struct Control {
    attached: Vec<UnixStream>,
    close: bool,
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, OutputLog> {
        self.output.lock().expect("no holder panics")
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().expect("no holder panics")
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().expect("no holder panics")
    }

    fn wake_hub(&self) {
        // The counter can only be full if the hub is about to wake up anyway.
        let _ = self.wake.write(1);
    }
}

/// The host side of one character device, with its thread. Dropping it closes it.
pub struct Chardev {
    shared: Arc<Shared>,
    hub: Mutex<Option<JoinHandle<()>>>,
}

impl Chardev {
    /// Starts the hub's thread, named `name`. A terminal on standard input goes into raw mode;
    /// `quit` is called on the hub's thread when the person there types Ctrl-A x.
    ///
    /// # Errors
    /// Whatever the host refuses: eventfd, epoll, thread.
    pub fn start(
        name: &str,
        resources: ChardevResources,
        quit: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            output: Mutex::new(OutputLog::default()),
            input: Mutex::new(Input::default()),
            control: Mutex::new(Control::default()),
            wake: EventFd::new(EFD_NONBLOCK)?,
            on_input: OnceLock::new(),
        });
        let hub = Hub::new(name, Arc::clone(&shared), resources, Box::new(quit))?;
        let thread = sandbox::spawn(name, ThreadKind::Device, move || hub.run())?;
        Ok(Self {
            shared,
            hub: Mutex::new(Some(thread)),
        })
    }

    /// Appends output. Never waits for a reader.
    pub fn write(&self, bytes: &[u8]) {
        if self.shared.output().push(bytes) {
            self.shared.wake_hub();
        }
    }

    /// Sets what is called, on the hub's thread, whenever input has come. Only the first call
    /// counts. Input from before is announced at once, on the caller's thread.
    pub fn on_input(&self, listener: impl Fn() + Send + Sync + 'static) {
        let listener = self.shared.on_input.get_or_init(|| Box::new(listener));
        if self.has_input() {
            listener();
        }
    }

    /// Takes input into `buffer` and returns how many bytes.
    pub fn read_input(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.shared.input();
        let count = buffer.len().min(input.bytes.len());
        for (to, from) in buffer.iter_mut().zip(input.bytes.drain(..count)) {
            *to = from;
        }
        let resume = input.full && count > 0;
        input.full &= !resume;
        drop(input);
        if resume {
            self.shared.wake_hub();
        }
        count
    }

    /// Whether input waits.
    pub fn has_input(&self) -> bool {
        !self.shared.input().bytes.is_empty()
    }

    /// The input that waits, which stays where it is: for the device's saved state.
    pub fn waiting_input(&self) -> Vec<u8> {
        self.shared.input().bytes.iter().copied().collect()
    }

    /// Puts input from saved state before any that has come since. What is beyond
    /// [`INPUT_BYTES`] then is lost: no other machine would take it from our own saved state.
    pub fn restore_input(&self, bytes: &[u8]) {
        let mut input = self.shared.input();
        let newer = std::mem::replace(&mut input.bytes, bytes.iter().copied().collect());
        input.bytes.extend(newer);
        input.bytes.truncate(INPUT_BYTES);
    }

    /// Serves one more client on `stream`: the history first, then what comes; what it sends is
    /// input. This is "console attach" of the API, in every mode.
    pub fn attach(&self, stream: UnixStream) {
        self.shared.control().attached.push(stream);
        self.shared.wake_hub();
    }

    /// What was written last, at most [`HISTORY_BYTES`].
    pub fn history(&self) -> Vec<u8> {
        self.shared.output().history()
    }

    /// Brings out what is still to be written, waits for that within a bound of one second, gives
    /// the terminal back and ends the hub's thread. Later output only goes to the history.
    pub fn close(&self) {
        self.shared.control().close = true;
        self.shared.wake_hub();
        let thread = self.hub.lock().expect("no holder panics").take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
