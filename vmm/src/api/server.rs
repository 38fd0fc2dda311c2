//! The thread that serves all connections.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pindah_vmm_api::{ErrorCode, ErrorInfo, Event};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connection::{Connection, Fate, Phase};
use super::handler::{self, Action, CONSOLE_PROTOCOL};
use super::response::Response;
use super::stream::History;
use super::worker::{Job, Worker, machine_error};
use super::{Limits, refuse};
use crate::causes::chain;
use crate::migration::request::Outgoing;
use crate::migration::worker::{Job as MigrationJob, Migrator, StartError};
use crate::sandbox::{self, ThreadKind};
use crate::vm::events::Subscription;
use crate::vm::machine::Machine;

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const EVENTS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

/// How long the last answers and events may take when the machine has ended.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to let connections be when the host has no descriptor for another.
const EXHAUSTED: Duration = Duration::from_millis(10);

const SNAPSHOT_RUNS: &str =
    "a snapshot is being taken; close its client's connection to give it up";

/// The API's handle. The API ends when it is stopped or dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `machine` on `listener`, and `migrator`, which moves it. Both threads are there when this returns, and so is the
    /// subscription: no event from now on is missed.
    ///
    /// # Errors
    /// The host refuses a thread, an eventfd or an epoll.
    pub fn spawn(
        listener: UnixListener,
        machine: Arc<dyn Machine>,
        migrator: Arc<Migrator>,
    ) -> io::Result<Self> {
        Self::spawn_with(listener, machine, migrator, Limits::default())
    }

    /// [`Self::spawn`] with other limits.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with(
        listener: UnixListener,
        machine: Arc<dyn Machine>,
        migrator: Arc<Migrator>,
        limits: Limits,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let serving = Serving::new(
            listener,
            machine,
            migrator,
            limits,
            &wake,
            Arc::clone(&stop),
        )?;

        let thread = sandbox::spawn("api", ThreadKind::Api, move || serving.run())?;
        Ok(Self {
            stop,
            wake,
            thread: Some(thread),
        })
    }

    /// Sends what has happened to who listens, ends the streams and closes all connections. A
    /// client that does not read is waited for no longer than a second.
    pub fn stop(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A counter that is full is readable.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.finish();
    }
}

struct Serving {
    listener: UnixListener,
    machine: Arc<dyn Machine>,
    migrator: Arc<Migrator>,
    limits: Limits,
    epoll: Epoll,
    wake: EventFd,
    stop: Arc<AtomicBool>,
    /// When to give up on the last clients, once stopped.
    stopping: Option<Instant>,
    subscription: Subscription,
    history: History,
    worker: Worker,
    /// The connection whose snapshot is being taken.
    snapshot: Option<u64>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Serving {
    fn new(
        listener: UnixListener,
        machine: Arc<dyn Machine>,
        migrator: Arc<Migrator>,
        limits: Limits,
        wake: &EventFd,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let subscription = machine.events().subscribe()?;
        let epoll = Epoll::new()?;
        let wake = wake.try_clone()?;
        for (descriptor, token) in [
            (listener.as_raw_fd(), LISTENER),
            (wake.as_raw_fd(), WAKE),
            (subscription.wake.as_raw_fd(), EVENTS),
        ] {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll.ctl(ControlOperation::Add, descriptor, event)?;
        }
        let worker = Worker::spawn(Arc::clone(&machine), wake.try_clone()?)?;
        Ok(Self {
            listener,
            machine,
            migrator,
            limits,
            epoll,
            wake,
            stop,
            stopping: None,
            subscription,
            history: History::default(),
            worker,
            snapshot: None,
            connections: BTreeMap::new(),
            next: FIRST_CONNECTION,
        })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::default(); 32];
        while !self.is_over() {
            let timeout = self.timeout_ms(Instant::now());
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => unreachable!("epoll on descriptors that are ours: {error}"),
            };
            let now = Instant::now();
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept(now),
                    WAKE => self.woken(now),
                    EVENTS => self.forward_events(now),
                    token => self.ready(token, event.event_set(), now),
                }
            }
            self.expire(now);
            if self.stopping.is_some() {
                while self.close_longest_idle() {}
            }
        }
    }

    fn is_over(&self) -> bool {
        let late = |deadline: Instant| Instant::now() >= deadline;
        self.stopping
            .is_some_and(|deadline| self.connections.is_empty() || late(deadline))
    }

    /// Until the nearest deadline, rounded up; -1: for ever.
    fn timeout_ms(&self, now: Instant) -> i32 {
        let deadlines = self
            .connections
            .values()
            .filter_map(|connection| connection.deadline(&self.limits));
        let Some(next) = deadlines.chain(self.stopping).min() else {
            return -1;
        };
        let wait = next.saturating_duration_since(now).as_micros();
        i32::try_from(wait.div_ceil(1000)).unwrap_or(i32::MAX)
    }

    fn accept(&mut self, now: Instant) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!("API: a connection cannot be accepted: {error}");
                    self.close_longest_idle();
                    std::thread::sleep(EXHAUSTED);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream, now: Instant) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let full = self.connections.len() >= self.limits.connections && !self.close_longest_idle();
        let mut connection = Connection::new(stream, now);
        if full {
            let most = self.limits.connections;
            let message = format!("there are {most} connections already");
            // Not kept: what the socket does not take at once is lost.
            let _ = connection.refuse(refuse(ErrorCode::TooManyConnections, message), now);
            return;
        }
        let token = self.next;
        let event = EpollEvent::new(connection.interest(), token);
        let descriptor = connection.descriptor();
        if self
            .epoll
            .ctl(ControlOperation::Add, descriptor, event)
            .is_ok()
        {
            self.next += 1;
            self.connections.insert(token, connection);
        }
    }

    fn close_longest_idle(&mut self) -> bool {
        let idle = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_idle())
            .min_by_key(|(_, connection)| connection.idle_since());
        let token = idle.map(|(&token, _)| token);
        if let Some(token) = token {
            self.close(token);
        }
        token.is_some()
    }

    /// The worker is done with something, or it is time to stop.
    fn woken(&mut self, now: Instant) {
        let _ = self.wake.read();
        while let Some(done) = self.worker.next_done() {
            if self.snapshot == Some(done.connection) {
                self.snapshot = None;
            }
            self.with(done.connection, |connection| {
                connection.respond(&done.response, now)
            });
            self.serve(done.connection, now);
        }
        if self.stop.load(Ordering::Acquire) && self.stopping.is_none() {
            self.begin_stop(now);
        }
    }

    fn begin_stop(&mut self, now: Instant) {
        self.stopping = Some(now + FAREWELL);
        self.worker.cancel_snapshot();
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            self.listener.as_raw_fd(),
            EpollEvent::default(),
        );
        self.forward_events(now);
        for token in self.tokens() {
            self.with(token, |connection| match connection.phase {
                Phase::Streaming => connection.end_stream(now),
                _ => Fate::Open,
            });
        }
    }

    fn tokens(&self) -> Vec<u64> {
        self.connections.keys().copied().collect()
    }

    fn forward_events(&mut self, now: Instant) {
        let _ = self.subscription.wake.read();
        loop {
            match self.subscription.receiver.try_recv() {
                Ok(event) => self.forward(event, now),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.resubscribe(now),
            }
        }
    }

    fn forward(&mut self, event: Event, now: Instant) {
        let lagged = self.history.lagged();
        let limits = self.limits;
        for token in self.tokens() {
            self.with(token, |connection| match connection.phase {
                Phase::Streaming => connection.stream(&event, &lagged, &limits, now),
                _ => Fate::Open,
            });
        }
        self.history.push(event);
    }

    /// This thread itself was too slow. Readers see the gap in the numbers.
    fn resubscribe(&mut self, now: Instant) {
        match self.machine.events().subscribe() {
            Ok(subscription) => {
                let event = EpollEvent::new(EventSet::IN, EVENTS);
                let descriptor = subscription.wake.as_raw_fd();
                let _ = self.epoll.ctl(ControlOperation::Add, descriptor, event);
                self.subscription = subscription;
            }
            Err(error) => tracing::warn!("API: no more events: {error}"),
        }
        for token in self.tokens() {
            self.with(token, |connection| match connection.phase {
                Phase::Streaming => connection.end_stream(now),
                _ => Fate::Open,
            });
        }
    }

    fn ready(&mut self, token: u64, events: EventSet, now: Instant) {
        self.with(token, |connection| {
            let readable = events.contains(EventSet::IN);
            let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
            if events.contains(EventSet::OUT) && connection.flush(now) == Fate::Closed {
                return Fate::Closed;
            }
            match connection.phase {
                Phase::Receiving | Phase::Finishing if readable => connection.fill(now),
                _ if gone => Fate::Closed,
                _ => Fate::Open,
            }
        });
        self.serve(token, now);
    }

    /// Works on a connection, then closes it or watches for what it waits for now.
    fn with(&mut self, token: u64, work: impl FnOnce(&mut Connection) -> Fate) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let fate = work(connection);
        let event = EpollEvent::new(connection.interest(), token);
        let descriptor = connection.descriptor();
        let watched = self.epoll.ctl(ControlOperation::Modify, descriptor, event);
        if fate == Fate::Closed || watched.is_err() {
            self.close(token);
        }
    }

    /// Takes every whole request that has come, until one must be waited for.
    fn serve(&mut self, token: u64, now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else {
                return;
            };
            match connection.next_request(&self.limits) {
                Ok(Some(request)) => {
                    let action = handler::handle(&*self.machine, &self.migrator, request);
                    self.act(token, action, now);
                }
                // A "100 Continue" may wait.
                Ok(None) => return self.with(token, |connection| connection.flush(now)),
                Err(error) => {
                    return self.with(token, |connection| connection.refuse(error, now));
                }
            }
        }
    }

    fn act(&mut self, token: u64, action: Action, now: Instant) {
        match action {
            Action::Respond(response) => {
                self.with(token, |connection| connection.respond(&response, now));
            }
            Action::Run(job) => self.submit(token, job, now),
            Action::Stream { after } => {
                let Some(connection) = self.connections.get_mut(&token) else {
                    return;
                };
                let kept = self.history.after(after.unwrap_or(u64::MAX));
                let fate = connection.start_stream(kept, now);
                self.with(token, |_| fate);
            }
            Action::Migrate(outgoing) => {
                let response = self.migrate(outgoing).unwrap_or_else(Response::error);
                self.with(token, |connection| connection.respond(&response, now));
            }
            Action::Attach { console } => self.attach(token, &console, now),
        }
    }

    fn submit(&mut self, token: u64, job: Job, now: Instant) {
        let problem = if self.snapshot.is_some() {
            Some(SNAPSHOT_RUNS)
        } else if job.disturbs_migration() && self.migrator.is_busy() {
            Some("a migration is under way; DELETE /api/v1/migrate gives it up")
        } else if self.stopping.is_some() {
            Some("the VMM is ending")
        } else {
            None
        };
        if let Some(message) = problem {
            let response = Response::error(refuse(ErrorCode::Conflict, message));
            return self.with(token, |connection| connection.respond(&response, now));
        }
        if matches!(job, Job::TakeSnapshot { .. }) {
            self.snapshot = Some(token);
        }
        let submitted = self.worker.submit(token, job);
        self.with(token, |connection| {
            connection.phase = Phase::Working;
            if submitted { Fate::Open } else { Fate::Closed }
        });
    }

    fn migrate(&self, outgoing: Box<Outgoing>) -> Result<Response, ErrorInfo> {
        if self.snapshot.is_some() {
            return Err(refuse(ErrorCode::Conflict, SNAPSHOT_RUNS));
        }
        self.migrator
            .start(MigrationJob::Send(outgoing))
            .map_err(|error| {
                let code = match error {
                    StartError::Host(_) => ErrorCode::HostError,
                    _ => ErrorCode::Conflict,
                };
                refuse(code, chain(&error))
            })?;
        Ok(Response::accepted(&self.migrator.status()))
    }

    fn attach(&mut self, token: u64, console: &str, now: Instant) {
        let Some(connection) = self.connections.get(&token) else {
            return;
        };
        let Some(stream) = connection.hand_over() else {
            let error = refuse(ErrorCode::BadRequest, "bytes follow the request");
            return self.with(token, |connection| connection.refuse(error, now));
        };
        // The epoll knows the socket, not its descriptor: it would outlive this handle.
        self.unwatch(connection.descriptor());
        let greeting = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
             Upgrade: {CONSOLE_PROTOCOL}\r\n\r\n"
        );
        let attached = self
            .machine
            .attach_console(console, stream, greeting.as_bytes());
        let Err(error) = attached else {
            self.connections.remove(&token);
            return;
        };
        let connection = &self.connections[&token];
        let event = EpollEvent::new(connection.interest(), token);
        let descriptor = connection.descriptor();
        let _ = self.epoll.ctl(ControlOperation::Add, descriptor, event);
        let response = Response::error(machine_error(&error));
        self.with(token, |connection| connection.respond(&response, now));
    }

    fn expire(&mut self, now: Instant) {
        for token in self.tokens() {
            let limits = self.limits;
            self.with(token, |connection| match connection.deadline(&limits) {
                Some(deadline) if deadline <= now => connection.expire(now),
                _ => Fate::Open,
            });
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            self.unwatch(connection.descriptor());
            if self.snapshot == Some(token) {
                self.worker.cancel_snapshot();
            }
        }
    }

    fn unwatch(&self, descriptor: RawFd) {
        let event = EpollEvent::default();
        let _ = self.epoll.ctl(ControlOperation::Delete, descriptor, event);
    }
}
