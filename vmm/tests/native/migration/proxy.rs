//! Stands between source and destination, knows the messages that pass, and does something at one
//! of them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use pindah_vmm::migration::protocol::{FrameHeader, HEADER_BYTES, Kind, PREAMBLE_BYTES};

/// The header of a TLS record: its type, version and length (RFC 8446, 5.1).
const RECORD_HEADER_BYTES: usize = 5;

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of a migration without encryption.
    Plain(Kind),
    /// A TLS record, which shows nothing of what it holds.
    Record(Way),
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ControlOut,
    ControlBack,
    DataOut,
}

/// When something is done: at the nth such message, counted from 1.
#[derive(Clone, Copy, Debug)]
pub struct Trigger {
    pub message: Message,
    pub nth: u32,
    /// Before it is passed on, or after.
    pub moment: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// What becomes of the message and the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All goes on.
    Pass,
    /// All connections end; what was not passed on is lost.
    Cut,
    /// Nothing passes any more, and nothing ends.
    Stall,
    /// One bit of it is another.
    Corrupt,
}

type Action = Box<dyn Fn() -> Fate + Send + Sync>;

struct Shared {
    destination: SocketAddr,
    encrypted: bool,
    trigger: Trigger,
    action: Action,
    seen: AtomicU32,
    fired: AtomicBool,
    commit_came: AtomicBool,
    commit_passed: AtomicBool,
    running_passed: AtomicBool,
    on_aborted: Option<Box<dyn Fn() + Send + Sync>>,
    ends: AtomicBool,
    stalled: Mutex<bool>,
    released: Condvar,
    streams: Mutex<Vec<TcpStream>>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
}

/// A proxy with its threads, which end with it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// On the way to `destination`, with what is done at `trigger`, and when the destination says
    /// that it will never run the guest.
    pub fn start(
        destination: SocketAddr,
        encrypted: bool,
        trigger: Trigger,
        action: impl Fn() -> Fate + Send + Sync + 'static,
        on_aborted: Option<Box<dyn Fn() + Send + Sync>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            destination,
            encrypted,
            trigger,
            action: Box::new(action),
            seen: AtomicU32::new(0),
            fired: AtomicBool::new(false),
            commit_came: AtomicBool::new(false),
            commit_passed: AtomicBool::new(false),
            running_passed: AtomicBool::new(false),
            on_aborted,
            ends: AtomicBool::new(false),
            stalled: Mutex::new(false),
            released: Condvar::new(),
            streams: Mutex::default(),
            pumps: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&accepting, &listener));
        Self {
            address,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Where the source finds it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the message came.
    pub fn has_fired(&self) -> bool {
        self.shared.fired.load(Ordering::SeqCst)
    }

    /// Whether the source has sent COMMIT; false if nobody can tell.
    pub fn commit_came(&self) -> bool {
        self.shared.commit_came.load(Ordering::SeqCst)
    }

    /// Whether the destination may have COMMIT; false if nobody can tell.
    pub fn commit_passed(&self) -> bool {
        self.shared.commit_passed.load(Ordering::SeqCst)
    }

    /// Whether the source may know that the guest runs at the destination.
    pub fn running_passed(&self) -> bool {
        self.shared.running_passed.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.release();
        self.shared.cut();
        // It waits for one more.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let pumps = std::mem::take(&mut *lock(&self.shared.pumps));
        for pump in pumps {
            let _ = pump.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut number = 0;
    for source in listener.incoming().map_while(Result::ok) {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        // Who cannot be reached is as good as one who closes.
        let Ok(destination) = TcpStream::connect(shared.destination) else {
            continue;
        };
        let (out, back) = match number {
            0 => (Way::ControlOut, Way::ControlBack),
            // Nothing but a greeting comes back, or on the urgent one plain messages that tell what
            // they are.
            _ => (Way::DataOut, Way::DataOut),
        };
        number += 1;
        for stream in [&source, &destination] {
            let _ = stream.set_nodelay(true);
            lock(&shared.streams).push(clone(stream));
        }
        let pump = |way, from, to, counted| {
            let shared = Arc::clone(shared);
            let pump = Pump {
                shared,
                way,
                from,
                to,
                counted,
            };
            std::thread::spawn(move || pump.run())
        };
        let there = pump(out, clone(&source), clone(&destination), true);
        let counted = back == Way::ControlBack || !shared.encrypted;
        let here = pump(back, destination, source, counted);
        lock(&shared.pumps).extend([there, here]);
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a socket can be cloned")
}

impl Shared {
    fn cut(&self) {
        for stream in lock(&self.streams).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn release(&self) {
        *lock(&self.stalled) = false;
        self.released.notify_all();
    }

    fn wait_while_stalled(&self) {
        let mut stalled = lock(&self.stalled);
        while *stalled {
            let waited = self.released.wait(stalled);
            stalled = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether this one is the message at which something is done.
    fn is_due(&self, message: Message) -> bool {
        if message != self.trigger.message {
            return false;
        }
        self.seen.fetch_add(1, Ordering::SeqCst) + 1 == self.trigger.nth
    }

    fn act(&self) -> Fate {
        // First, since both sides may have ended before this thread goes on.
        self.fired.store(true, Ordering::SeqCst);
        let fate = (self.action)();
        if fate == Fate::Cut {
            self.cut();
        }
        if fate == Fate::Stall {
            *lock(&self.stalled) = true;
        }
        fate
    }
}

/// One direction of one connection.
struct Pump {
    shared: Arc<Shared>,
    way: Way,
    from: TcpStream,
    to: TcpStream,
    /// Whether its messages count.
    counted: bool,
}

impl Pump {
    fn run(mut self) {
        if self.pass_all().is_err() {
            // As a host does whose process has gone with something unread.
            let _ = self.from.shutdown(Shutdown::Both);
            let _ = self.to.shutdown(Shutdown::Both);
        } else {
            let _ = self.to.shutdown(Shutdown::Write);
        }
    }

    fn pass_all(&mut self) -> io::Result<()> {
        if !self.shared.encrypted {
            let mut preamble = [0; PREAMBLE_BYTES];
            if self.from.read_exact(&mut preamble).is_err() {
                return Ok(());
            }
            self.to.write_all(&preamble)?;
        }
        while let Some((message, mut bytes)) = self.next() {
            self.shared.wait_while_stalled();
            let is_due = self.counted && self.shared.is_due(message);
            self.note(message, true);
            if is_due && self.shared.trigger.moment == Moment::Before {
                match self.shared.act() {
                    Fate::Pass => {}
                    Fate::Cut => return Err(io::ErrorKind::ConnectionAborted.into()),
                    Fate::Stall => self.shared.wait_while_stalled(),
                    Fate::Corrupt if self.shared.encrypted => {
                        *bytes.last_mut().expect("a record") ^= 4;
                    }
                    // Reserved, and looked at in every frame.
                    Fate::Corrupt => bytes[2] ^= 4,
                }
            }
            self.note(message, false);
            self.to.write_all(&bytes)?;
            if is_due && self.shared.trigger.moment == Moment::After {
                self.shared.act();
            }
        }
        Ok(())
    }

    /// What is known of the point of no return.
    fn note(&self, message: Message, came: bool) {
        let flag = match (message, came) {
            (Message::Plain(Kind::Commit), true) => &self.shared.commit_came,
            (Message::Plain(Kind::Commit), false) => &self.shared.commit_passed,
            (Message::Plain(Kind::Running), false) => &self.shared.running_passed,
            (Message::Plain(Kind::Aborted), false) => {
                if let Some(action) = &self.shared.on_aborted {
                    action();
                }
                return;
            }
            _ => return,
        };
        flag.store(true, Ordering::SeqCst);
    }

    /// The next message with all its bytes; nothing at the end.
    fn next(&mut self) -> Option<(Message, Vec<u8>)> {
        let header_bytes = if self.shared.encrypted {
            RECORD_HEADER_BYTES
        } else {
            HEADER_BYTES
        };
        let mut bytes = vec![0; header_bytes];
        self.from.read_exact(&mut bytes).ok()?;
        let (message, length) = if self.shared.encrypted {
            let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
            (Message::Record(self.way), length)
        } else {
            let header = bytes.first_chunk().copied().and_then(FrameHeader::decode);
            let header = header.expect("both sides keep to the protocol");
            (Message::Plain(header.kind), header.length)
        };
        bytes.resize(header_bytes + length, 0);
        self.from.read_exact(&mut bytes[header_bytes..]).ok()?;
        Some((message, bytes))
    }
}
