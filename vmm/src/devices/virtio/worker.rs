//! One thread that serves a device's queues: started once with the machine, parked until the
//! driver is ready, and parked again by reset and pause.
//!
//! Threads exist before the sandbox closes, so activation costs a message and no clone.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_queue::Queue;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation};
use crate::sandbox::{self, ThreadKind};

/// What a [`Worker`] runs. Lives on the worker's thread.
pub trait Handler: Send + 'static {
    /// Takes the queues and looks at each once. Returns the file descriptors to watch, each with
    /// the token that [`Self::event`] will get; kicks are watched by the handler's own choice.
    ///
    /// # Errors
    /// [`ActivateError`] if the backend refuses.
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError>;
    /// A watched descriptor is readable (level-triggered: drain it).
    fn event(&mut self, token: u32);
    /// Finishes what is in flight and gives the queues back.
    fn deactivate(&mut self) -> Vec<(u16, Queue)>;
}

type Call<H> = Box<dyn FnOnce(&mut H) + Send>;

enum Command<H> {
    Activate(Box<Activation>, Sender<Result<(), ActivateError>>),
    Deactivate(Sender<Vec<(u16, Queue)>>),
    Call(Call<H>),
}

/// The handle to a worker's thread. The thread ends when this is dropped.
pub struct Worker<H> {
    commands: Option<Sender<Command<H>>>,
    wake: EventFd,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Reserved for the worker's own wake-up.
const WAKE: u32 = u32::MAX;

impl<H: Handler> Worker<H> {
    /// Starts the thread, parked, under the seccomp filter for `kind`.
    ///
    /// # Errors
    /// Whatever the host refuses: eventfd, epoll, thread.
    pub fn spawn(name: &str, kind: ThreadKind, handler: H) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, WAKE.into());
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        let (commands, receiver) = channel();
        let wake_end = wake.try_clone()?;
        let thread = sandbox::spawn(name, kind, move || {
            run(handler, &epoll, &wake_end, &receiver);
        })?;
        Ok(Self {
            commands: Some(commands),
            wake,
            thread: Some(thread),
        })
    }

    fn send(&self, command: Command<H>) {
        let commands = self.commands.as_ref().expect("only drop takes it");
        commands
            .send(command)
            .expect("the thread ends only on drop");
        self.wake.write(1).expect("an eventfd takes a one");
    }

    /// Hands the queues to the handler and waits until it has looked at them.
    ///
    /// # Errors
    /// What the handler's [`Handler::activate`] returns.
    pub fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let (reply, answer) = channel();
        self.send(Command::Activate(Box::new(activation), reply));
        answer.recv().expect("the thread answers every command")
    }

    /// Parks the handler and takes its queues.
    pub fn deactivate(&self) -> Vec<(u16, Queue)> {
        let (reply, answer) = channel();
        self.send(Command::Deactivate(reply));
        answer.recv().expect("the thread answers every command")
    }

    /// Runs `call` on the worker's thread, in turn with its events, and does not wait for it.
    pub fn post(&self, call: impl FnOnce(&mut H) + Send + 'static) {
        self.send(Command::Call(Box::new(call)));
    }

    /// Runs `call` on the worker's thread, in turn with its events, and waits for its result.
    pub fn call<R: Send + 'static>(&self, call: impl FnOnce(&mut H) -> R + Send + 'static) -> R {
        let (reply, answer) = channel();
        self.send(Command::Call(Box::new(move |handler| {
            let _ = reply.send(call(handler));
        })));
        answer.recv().expect("the thread answers every command")
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run<H: Handler>(mut handler: H, epoll: &Epoll, wake: &EventFd, commands: &Receiver<Command<H>>) {
    let mut watched: Vec<RawFd> = Vec::new();
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => unreachable!("epoll on descriptors that are ours: {error}"),
        };
        // Device events first: a command may take descriptors away that have events here.
        let ready = &events[..count];
        for event in ready.iter().filter(|event| event.data() != u64::from(WAKE)) {
            handler.event(event.data() as u32);
        }
        if !ready.iter().any(|event| event.data() == u64::from(WAKE)) {
            continue;
        }
        let _ = wake.read();
        loop {
            match commands.try_recv() {
                Ok(Command::Activate(activation, reply)) => {
                    let result = handler.activate(*activation).map(|descriptors| {
                        watched = watch(epoll, &descriptors);
                    });
                    let _ = reply.send(result);
                }
                Ok(Command::Deactivate(reply)) => {
                    for fd in watched.drain(..) {
                        let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
                    }
                    let _ = reply.send(handler.deactivate());
                }
                Ok(Command::Call(call)) => call(&mut handler),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }
}

fn watch(epoll: &Epoll, descriptors: &[(RawFd, u32)]) -> Vec<RawFd> {
    for &(fd, token) in descriptors {
        let event = EpollEvent::new(EventSet::IN, token.into());
        epoll
            .ctl(ControlOperation::Add, fd, event)
            .expect("a handler names open descriptors, each once");
    }
    descriptors.iter().map(|&(fd, _)| fd).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::devices::virtio::testing::{DriverQueue, activation, memory, wait_until};

    #[derive(Default)]
    struct Recorder {
        activation: Option<Activation>,
        events: Arc<Mutex<Vec<u32>>>,
        refuse: bool,
    }

    impl Handler for Recorder {
        fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
            if self.refuse {
                return Err(ActivateError::Queues {
                    id: "recorder".to_owned(),
                    reason: "test".to_owned(),
                });
            }
            let queues = &activation.queues;
            let kicks = queues
                .iter()
                .map(|queue| (queue.kick.as_raw_fd(), queue.index.into()));
            let kicks = kicks.collect();
            self.activation = Some(activation);
            Ok(kicks)
        }

        fn event(&mut self, token: u32) {
            let activation = self.activation.as_ref().unwrap();
            activation.queues[token as usize].kick.read().unwrap();
            self.events.lock().unwrap().push(token);
        }

        fn deactivate(&mut self) -> Vec<(u16, Queue)> {
            let queues = self.activation.take().map_or(Vec::new(), |all| all.queues);
            let queues = queues.into_iter().map(|queue| (queue.index, queue.queue));
            queues.collect()
        }
    }

    #[test]
    fn kick_is_seen_while_active_and_kept_while_parked() {
        let memory = memory(1);
        let drivers = [0, 0x4000].map(|base| DriverQueue::new(&memory, base, 8));
        let both = [(0, &drivers[0]), (1, &drivers[1])];
        let events = Arc::<Mutex<Vec<u32>>>::default();
        let handler = Recorder {
            events: Arc::clone(&events),
            ..Recorder::default()
        };
        let worker = Worker::spawn("worker", ThreadKind::Device, handler).unwrap();
        worker.activate(activation(&memory, 0, &both).0).unwrap();
        drivers[1].kick();
        wait_until("the kick", || *events.lock().unwrap() == [1]);
        assert_eq!(worker.deactivate().len(), 2);
        drivers[0].kick();
        assert_eq!(
            worker.call(|handler| handler.events.lock().unwrap().len()),
            1
        );
        worker.activate(activation(&memory, 0, &both).0).unwrap();
        wait_until("the kept kick", || *events.lock().unwrap() == [1, 0]);
    }

    #[test]
    fn handler_that_refuses_can_be_activated_later() {
        let memory = memory(1);
        let driver = DriverQueue::new(&memory, 0, 8);
        let queues = [(0, &driver)];
        let handler = Recorder {
            refuse: true,
            ..Recorder::default()
        };
        let worker = Worker::spawn("worker", ThreadKind::Device, handler).unwrap();
        assert!(worker.activate(activation(&memory, 0, &queues).0).is_err());
        assert!(worker.deactivate().is_empty());
        worker.call(|handler| handler.refuse = false);
        worker.activate(activation(&memory, 0, &queues).0).unwrap();
        assert_eq!(worker.deactivate().len(), 1);
    }
}
