//! The thread that brings output to the readers and input to the device.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::client::Client;
use super::open::ChardevResources;
use super::sink::Sink;
use super::stdin::Stdin;
use super::{INPUT_BYTES, Shared, escape};
use crate::sandbox;

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const SINK: u64 = 2;
const STDIN: u64 = 3;
const FIRST_CLIENT: u64 = 16;

/// Clients at a time.
const CLIENTS_MAX: usize = 32;
/// Output is copied out of the log in pieces of this size.
const CHUNK_BYTES: usize = 16 << 10;
/// How long the end of the process waits for the last output to be taken.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The hub's own state.
pub(super) struct Hub {
    name: String,
    shared: Arc<Shared>,
    epoll: Epoll,
    quit: Box<dyn Fn() + Send>,
    listener: Option<UnixListener>,
    socket_file: Option<SocketFile>,
    sink: Option<Sink>,
    stdin: Option<Stdin>,
    /// What epoll watches standard input for.
    stdin_armed: EventSet,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    chunk: Vec<u8>,
}

impl Hub {
    /// Takes the descriptors and watches them.
    ///
    /// # Errors
    /// Whatever the host refuses.
    pub(super) fn new(
        name: &str,
        shared: Arc<Shared>,
        resources: ChardevResources,
        quit: Box<dyn Fn() + Send>,
    ) -> io::Result<Self> {
        let mut hub = Self {
            name: name.to_owned(),
            epoll: Epoll::new()?,
            quit,
            listener: None,
            socket_file: None,
            sink: None,
            stdin: None,
            stdin_armed: EventSet::empty(),
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            chunk: vec![0; CHUNK_BYTES],
            shared,
        };
        let wake = hub.shared.wake.as_raw_fd();
        hub.watch(wake, WAKE, EventSet::IN)?;
        match resources {
            ChardevResources::Off => {}
            ChardevResources::Stdio(stdio) => {
                hub.set_sink(stdio.output)?;
                hub.set_stdin(stdio.input)?;
            }
            ChardevResources::File(file) => hub.set_sink(file)?,
            ChardevResources::Socket(socket) => {
                socket.listener.set_nonblocking(true)?;
                hub.watch(socket.listener.as_raw_fd(), LISTENER, EventSet::IN)?;
                hub.listener = Some(socket.listener);
                hub.socket_file = socket.path.and_then(SocketFile::new);
            }
        }
        Ok(hub)
    }

    fn watch(&self, fd: i32, token: u64, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, token);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    fn rearm(&self, fd: i32, token: u64, events: EventSet) {
        let event = EpollEvent::new(events, token);
        // Only a descriptor that epoll never took can fail, and that one never has to wait.
        let _ = self.epoll.ctl(ControlOperation::Modify, fd, event);
    }

    /// Closing is not enough: others may hold the same file description.
    fn unwatch(&self, fd: i32) {
        let event = EpollEvent::default();
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, event);
    }

    fn set_sink(&mut self, file: std::fs::File) -> io::Result<()> {
        let sink = Sink::new(file);
        match self.watch(sink.as_raw_fd(), SINK, EventSet::empty()) {
            // A regular file: it always has room, and epoll does not take it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            result => result?,
        }
        self.sink = Some(sink);
        self.shared.output().hold(Some(0));
        Ok(())
    }

    fn set_stdin(&mut self, file: std::fs::File) -> io::Result<()> {
        let Some(mut stdin) = Stdin::new(file) else {
            return Ok(());
        };
        match self.watch(stdin.as_raw_fd(), STDIN, EventSet::IN) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                stdin.always_readable = true;
            }
            result => result?,
        }
        self.stdin_armed = EventSet::IN;
        self.stdin = Some(stdin);
        Ok(())
    }

    /// Serves until [`super::Chardev::close`].
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::default(); 16];
        while self.take_control() {
            let seen = self.shared.output().end();
            self.flush();
            let input_open = self.update_input_interest();
            // With nobody to write to, output need not wake this thread.
            if self.has_willing_reader() && !self.shared.output().sleep(seen) {
                continue;
            }
            let busy = input_open
                && self
                    .stdin
                    .as_ref()
                    .is_some_and(|input| input.always_readable);
            let count = match self.epoll.wait(if busy { 0 } else { -1 }, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => unreachable!("epoll on descriptors that are ours: {error}"),
            };
            if busy {
                self.read_stdin();
            }
            for event in &events[..count] {
                self.handle(event.data(), event.event_set());
            }
        }
        self.finish();
    }

    /// Takes attached clients. Returns whether to go on.
    fn take_control(&mut self) -> bool {
        let (attached, close) = {
            let mut control = self.shared.control();
            (std::mem::take(&mut control.attached), control.close)
        };
        for stream in attached {
            self.add_client(stream);
        }
        !close
    }

    fn handle(&mut self, token: u64, events: EventSet) {
        match token {
            WAKE => {
                let _ = self.shared.wake.read();
            }
            LISTENER => self.accept(),
            SINK => {
                if let Some(sink) = &mut self.sink {
                    sink.blocked = false;
                    let fd = sink.as_raw_fd();
                    self.rearm(fd, SINK, EventSet::empty());
                    if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
                        self.drop_sink("its reader is gone");
                    }
                }
            }
            STDIN => self.read_stdin(),
            client => self.handle_client(client, events),
        }
    }

    fn handle_client(&mut self, token: u64, events: EventSet) {
        let room = self.input_room();
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        client.blocked &= !events.contains(EventSet::OUT);
        let mut buffer = [0; INPUT_BYTES];
        let wanted = client.reading && room > 0;
        let result = if wanted && events.contains(EventSet::IN) {
            client.read(&mut buffer[..room])
        } else if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            Err(ErrorKind::ConnectionReset.into())
        } else {
            Ok(0)
        };
        match result {
            Ok(count) => self.give_input(&buffer[..count]),
            Err(_) => self.drop_client(token),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        match listener.accept() {
            Ok((stream, _)) => self.add_client(stream),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                ) => {}
            Err(error) => {
                // Out of descriptors: who waits is served when another client leaves.
                tracing::warn!("{}: cannot accept a client: {error}", self.name);
                let fd = listener.as_raw_fd();
                self.rearm(fd, LISTENER, EventSet::empty());
            }
        }
    }

    fn add_client(&mut self, stream: UnixStream) {
        if self.clients.len() >= CLIENTS_MAX {
            tracing::warn!("{}: client refused, {CLIENTS_MAX} are connected", self.name);
            return;
        }
        let start = self.shared.output().history_start();
        let token = self.next_client;
        let added = Client::new(stream, start).and_then(|client| {
            self.watch(client.as_raw_fd(), token, client.armed)?;
            Ok(client)
        });
        match added {
            Ok(client) => {
                self.clients.insert(token, client);
                self.next_client += 1;
            }
            Err(error) => tracing::warn!("{}: cannot serve a client: {error}", self.name),
        }
    }

    fn drop_client(&mut self, token: u64) {
        if let Some(client) = self.clients.remove(&token) {
            self.unwatch(client.as_raw_fd());
        }
        if let Some(listener) = &self.listener {
            self.rearm(listener.as_raw_fd(), LISTENER, EventSet::IN);
        }
    }

    fn read_stdin(&mut self) {
        let room = self.input_room();
        let Some(stdin) = &mut self.stdin else {
            return;
        };
        if room == 0 {
            return;
        }
        match stdin.read(room) {
            Ok(Some(keys)) => {
                if keys.help
                    && let Some(sink) = &mut self.sink
                {
                    let _ = sink.write(escape::HELP);
                }
                if keys.quit {
                    (self.quit)();
                }
                self.give_input(&keys.input);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Closed, or the terminal has hung up: the guest runs on without.
            Ok(None) | Err(_) => {
                let fd = stdin.as_raw_fd();
                self.unwatch(fd);
                self.stdin = None;
            }
        }
    }

    /// How much more input may wait. At 0 the device wakes the hub when it has taken some.
    fn input_room(&self) -> usize {
        let mut input = self.shared.input();
        let room = INPUT_BYTES.saturating_sub(input.bytes.len());
        input.full = room == 0;
        room
    }

    fn give_input(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.shared.input().bytes.extend(bytes);
        if let Some(listener) = self.shared.on_input.get() {
            listener();
        }
    }

    /// Listens to those who may send, as long as there is room. Returns whether there is.
    fn update_input_interest(&mut self) -> bool {
        let open = self.input_room() > 0;
        let mut changes = Vec::new();
        for (&token, client) in &mut self.clients {
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, open && client.reading);
            wanted.set(EventSet::OUT, client.blocked);
            if wanted != client.armed {
                client.armed = wanted;
                changes.push((client.as_raw_fd(), token, wanted));
            }
        }
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, open);
        if let Some(stdin) = &self.stdin
            && !stdin.always_readable
            && wanted != self.stdin_armed
        {
            self.stdin_armed = wanted;
            changes.push((stdin.as_raw_fd(), STDIN, wanted));
        }
        for (fd, token, wanted) in changes {
            self.rearm(fd, token, wanted);
        }
        open
    }

    fn has_willing_reader(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| !sink.blocked)
            || self.clients.values().any(|client| !client.blocked)
    }

    fn flush(&mut self) {
        self.flush_sink();
        let mut broken = Vec::new();
        for (&token, client) in &mut self.clients {
            if !client.blocked && client.flush(&self.shared, &mut self.chunk).is_err() {
                broken.push(token);
            }
        }
        for token in broken {
            self.drop_client(token);
        }
    }

    fn flush_sink(&mut self) {
        while let Some(sink) = &mut self.sink {
            if sink.blocked {
                return;
            }
            let (from, start, count) = {
                let log = self.shared.output();
                let from = log.held_from().unwrap_or(log.end());
                let (start, count) = log.read(from, &mut self.chunk);
                (from, start, count)
            };
            if count == 0 {
                return;
            }
            let taken = match sink.write(&self.chunk[..count]) {
                Ok(taken) => taken,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    sink.blocked = true;
                    let fd = sink.as_raw_fd();
                    self.rearm(fd, SINK, EventSet::OUT);
                    return;
                }
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut sink.complained, true) {
                        tracing::warn!("{}: output is lost: {error}", self.name);
                    }
                    count
                }
                Err(error) => {
                    self.drop_sink(&error.to_string());
                    return;
                }
            };
            let mut log = self.shared.output();
            // Unless a restore has moved it in between.
            if log.held_from() == Some(from) {
                log.hold(Some(start + taken as u64));
            }
        }
    }

    fn drop_sink(&mut self, reason: &str) {
        if let Some(sink) = self.sink.take() {
            self.unwatch(sink.as_raw_fd());
            tracing::warn!("{}: output goes nowhere from now on: {reason}", self.name);
            self.shared.output().hold(None);
        }
    }

    /// The last output, and the end.
    fn finish(&mut self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for client in self.clients.values_mut() {
            client.blocked = false;
        }
        self.flush();
        while let Some(sink) = &mut self.sink
            && sink.blocked
            && sink.wait(deadline)
        {
            sink.blocked = false;
            self.flush_sink();
        }
        self.shared.output().hold(None);
        if let Some(socket) = &self.socket_file {
            socket.remove();
        }
    }
}

/// A lack of space passes; what is written meanwhile is lost.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// The socket's place in the file system.
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: PathBuf) -> Option<Self> {
        let inode = inode(&path)?;
        Some(Self { path, inode })
    }

    /// Removes it if it is still ours. The sandbox forbids that; the next process that wants the
    /// path then finds that nobody listens.
    fn remove(&self) {
        if !sandbox::is_closed() && inode(&self.path) == Some(self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
