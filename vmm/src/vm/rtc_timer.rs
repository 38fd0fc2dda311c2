//! The thread on which the real-time clock's interrupts come due.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::rtc::Rtc;
use crate::sandbox::{self, ThreadKind};

/// Runs until it is dropped.
pub(super) struct RtcTimer {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

const TIMER: u64 = 0;
const STOP: u64 = 1;

impl RtcTimer {
    /// Starts serving the timer of `rtc`.
    pub fn start(rtc: Arc<Rtc>) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        for (fd, token) in [(rtc.timer(), TIMER), (stop.as_raw_fd(), STOP)] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )?;
        }
        let thread = sandbox::spawn("rtc", ThreadKind::Device, move || serve(&rtc, &epoll))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

fn serve(rtc: &Rtc, epoll: &Epoll) {
    let mut events = [EpollEvent::default(); 2];
    loop {
        // Nothing but a signal can wake it up without an event.
        let count = epoll.wait(-1, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                TIMER => rtc.on_timer(),
                _ => return,
            }
        }
    }
}

impl Drop for RtcTimer {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
