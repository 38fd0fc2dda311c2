//! virtio-console (virtio 1.2, section 5.3): port 0, over the same host side as the serial port.
//!
//! There is one port, so VIRTIO_CONSOLE_F_MULTIPORT is not offered, and with it no control
//! queues: what further ports carry, an agent in the guest for example, has vsock today.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::serve::{Chain, Malformed, serve};
use super::worker::{Handler, Worker};
use super::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::devices::chardev::{BACKLOG_BYTES, Chardev, INPUT_BYTES, byte_string};
use crate::memory::GuestMemory;
use crate::sandbox::ThreadKind;
use crate::state::{Section, StateError};

const KIND: &str = "virtio-console";
const VERSION: u16 = 1;
/// receiveq and transmitq of port 0.
const QUEUE_SIZES: [u16; 2] = [64, 64];

/// Feature bits (5.3.3).
const F_SIZE: u32 = 0;
const F_EMERG_WRITE: u32 = 2;

/// Offset of `emerg_wr` in the configuration (5.3.4).
const EMERG_WR_OFFSET: u64 = 8;
const CONFIG_BYTES: usize = 12;

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 4096;

const RX: u32 = 0;
const TX: u32 = 1;
const INPUT: u32 = 2;

/// Columns and rows.
type Size = Arc<Mutex<(u16, u16)>>;

/// The console.
pub struct Console {
    id: String,
    host: Arc<Chardev>,
    size: Size,
    worker: Arc<Worker<ConsoleHandler>>,
}

/// A way to the console from outside the guest.
#[derive(Clone)]
pub struct ConsoleHandle {
    size: Size,
    worker: Arc<Worker<ConsoleHandler>>,
}

/// Saved state.
#[derive(Serialize, Deserialize)]
struct ConsoleState {
    /// Input that the driver has not taken.
    #[serde(default, with = "byte_string")]
    waiting: Vec<u8>,
}

impl Console {
    /// A console that talks to `host`, whose terminal has `size` columns and rows if it is one.
    ///
    /// # Errors
    /// Whatever the host refuses: eventfd, thread.
    pub fn new(
        id: &str,
        host: Arc<Chardev>,
        size: Option<(u16, u16)>,
    ) -> io::Result<(Self, ConsoleHandle)> {
        let input = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let handler = ConsoleHandler {
            id: id.to_owned(),
            host: Arc::clone(&host),
            input: Arc::clone(&input),
            active: None,
        };
        let worker = Arc::new(Worker::spawn(id, ThreadKind::Device, handler)?);
        host.on_input(move || {
            // Fails only when the counter is full: the worker is about to wake up anyway.
            let _ = input.write(1);
        });
        let size = Arc::new(Mutex::new(size.unwrap_or_default()));
        let handle = ConsoleHandle {
            size: Arc::clone(&size),
            worker: Arc::clone(&worker),
        };
        let console = Self {
            id: id.to_owned(),
            host,
            size,
            worker,
        };
        Ok((console, handle))
    }
}

impl ConsoleHandle {
    /// Tells the driver of a new size of the terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        *self.size.lock().expect("no holder panics") = (columns, rows);
        self.worker.call(|handler| {
            if let Some(active) = &handler.active {
                active.interrupt.signal_config();
            }
        });
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u16 {
        VIRTIO_ID_CONSOLE as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << F_SIZE
            | 1 << F_EMERG_WRITE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = *self.size.lock().expect("no holder panics");
        let mut config = [0; CONFIG_BYTES];
        config[0..2].copy_from_slice(&columns.to_le_bytes());
        config[2..4].copy_from_slice(&rows.to_le_bytes());
        // max_nr_ports, which is only of use with MULTIPORT.
        config[4] = 1;
        let start = usize::try_from(offset).unwrap_or(CONFIG_BYTES);
        let available = config.get(start..).unwrap_or_default();
        let count = data.len().min(available.len());
        data[..count].copy_from_slice(&available[..count]);
        data[count..].fill(0);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // One character, from a driver that is in no state to use its queues.
        if offset == EMERG_WR_OFFSET
            && let Some(&character) = data.first()
        {
            self.host.write(&[character]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.activate(activation)
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        self.worker.deactivate()
    }

    fn save(&self) -> Result<Section, StateError> {
        let waiting = self.host.waiting_input();
        Section::new(KIND, &self.id, VERSION, &ConsoleState { waiting })
    }

    fn restore(&mut self, section: &Section) -> Result<(), StateError> {
        let state: ConsoleState = section.parse(VERSION)?;
        if state.waiting.len() > INPUT_BYTES {
            return Err(section.invalid(format!("{} bytes of input", state.waiting.len())));
        }
        self.host.restore_input(&state.waiting);
        Ok(())
    }
}

struct ConsoleHandler {
    id: String,
    host: Arc<Chardev>,
    input: Arc<EventFd>,
    active: Option<Active>,
}

struct Active {
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    receive: Option<ActiveQueue>,
    transmit: Option<ActiveQueue>,
    /// A queue's rings are broken; nothing is looked at until the reset.
    broken: bool,
}

impl ConsoleHandler {
    fn transmit(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return;
        };
        let Some(queue) = &mut active.transmit else {
            return;
        };
        let (memory, host) = (&*active.memory, &self.host);
        let served = serve(queue, memory, &*active.interrupt, |chain| {
            print(chain, memory, host).map(|()| Some(0))
        });
        if let Err(error) = served {
            self.broken(&error);
        }
    }

    fn receive(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return;
        };
        let Some(queue) = &mut active.receive else {
            return;
        };
        if let Err(error) = deliver(queue, &active.memory, &*active.interrupt, &self.host) {
            self.broken(&error);
        }
    }

    fn broken(&mut self, error: &impl std::fmt::Display) {
        tracing::warn!("{}: device needs a reset: {error}", self.id);
        if let Some(active) = &mut self.active {
            active.broken = true;
            active.interrupt.needs_reset();
        }
    }
}

/// Brings a chain's bytes out.
fn print(chain: Chain, memory: &GuestMemory, host: &Chardev) -> Result<(), Malformed> {
    let mut reader = chain.reader(memory).map_err(|_| Malformed)?;
    let mut piece = [0; PIECE_BYTES];
    let mut left = BACKLOG_BYTES;
    // The host side holds no more than that, and only its end.
    while left > 0 {
        let count = reader.read(&mut piece).map_err(|_| Malformed)?;
        if count == 0 {
            break;
        }
        host.write(&piece[..count]);
        left = left.saturating_sub(count);
    }
    Ok(())
}

/// Fills chains with input as long as there are both.
fn deliver(
    active: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
    host: &Chardev,
) -> Result<(), virtio_queue::Error> {
    let queue = &mut active.queue;
    let mut used = false;
    queue.disable_notification(memory)?;
    // One round at most, so that a driver that never stops does not keep the thread.
    let mut left = queue.size();
    while host.has_input() {
        if left == 0 {
            let _ = active.kick.write(1);
            break;
        }
        left -= 1;
        let Some(chain) = queue.iter(memory)?.next() else {
            if queue.enable_notification(memory)? {
                queue.disable_notification(memory)?;
                continue;
            }
            break;
        };
        let head = chain.head_index();
        let mut writer = chain.writer(memory)?;
        let mut piece = [0; PIECE_BYTES];
        let room = writer.available_bytes().min(PIECE_BYTES);
        let count = host.read_input(&mut piece[..room]);
        writer
            .write_all(&piece[..count])
            .map_err(|_| virtio_queue::Error::InvalidChain)?;
        queue.add_used(memory, head, count as u32)?;
        used = true;
    }
    if used && queue.needs_notification(memory)? {
        interrupt.signal_queue(active.index);
    }
    Ok(())
}

impl Handler for ConsoleHandler {
    fn activate(&mut self, activation: Activation) -> Result<Vec<(RawFd, u32)>, ActivateError> {
        let mut active = Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            receive: None,
            transmit: None,
            broken: false,
        };
        let mut watched = vec![(self.input.as_raw_fd(), INPUT)];
        for queue in activation.queues {
            let place = match queue.index {
                0 => &mut active.receive,
                1 => &mut active.transmit,
                _ => continue,
            };
            watched.push((queue.kick.as_raw_fd(), queue.index.into()));
            *place = Some(queue);
        }
        self.active = Some(active);
        self.transmit();
        self.receive();
        Ok(watched)
    }

    fn event(&mut self, token: u32) {
        let active = self.active.as_ref();
        let kick = match token {
            RX => active.and_then(|active| Some(&active.receive.as_ref()?.kick)),
            TX => active.and_then(|active| Some(&active.transmit.as_ref()?.kick)),
            _ => Some(&self.input),
        };
        if let Some(kick) = kick {
            let _ = kick.read();
        }
        match token {
            TX => self.transmit(),
            _ => self.receive(),
        }
    }

    fn deactivate(&mut self) -> Vec<(u16, Queue)> {
        let active = self.active.take();
        let queues = active.map(|active| [active.receive, active.transmit]);
        let queues = queues.into_iter().flatten().flatten();
        queues.map(|queue| (queue.index, queue.queue)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::chardev::ChardevResources;
    use crate::devices::virtio::testing::{
        Buffer, DriverQueue, FakeInterrupt, activation, memory, readable, wait_until, writable,
    };

    const BUFFER: u64 = 0x8_0000;

    struct Machine {
        memory: Arc<GuestMemory>,
        console: Console,
        handle: ConsoleHandle,
        receive: DriverQueue,
        transmit: DriverQueue,
        interrupt: Arc<FakeInterrupt>,
        client: UnixStream,
    }

    fn console() -> (Console, ConsoleHandle) {
        let host = Chardev::start("test", ChardevResources::Off, || {}).unwrap();
        Console::new("console", Arc::new(host), Some((132, 43))).unwrap()
    }

    impl Machine {
        fn new() -> Self {
            let memory = memory(1);
            let (mut console, handle) = console();
            let receive = DriverQueue::new(&memory, 0x1_0000, 64);
            let transmit = DriverQueue::new(&memory, 0x2_0000, 64);
            let queues = [(0, &receive), (1, &transmit)];
            let (activation, interrupt) = activation(&memory, console.features(), &queues);
            console.activate(activation).unwrap();
            let (client, theirs) = UnixStream::pair().unwrap();
            console.host.attach(theirs);
            Self {
                memory,
                console,
                handle,
                receive,
                transmit,
                interrupt,
                client,
            }
        }

        fn expect(&mut self, expected: &[u8]) {
            let mut got = vec![0; expected.len()];
            self.client.read_exact(&mut got).unwrap();
            assert!(got == expected);
        }
    }

    #[test]
    fn guest_output_reaches_the_client_in_order() {
        let mut machine = Machine::new();
        let text: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
        let at = GuestAddress(BUFFER);
        machine.memory.write_slice(&text, at).unwrap();
        let chain = [
            readable(BUFFER, 1),
            readable(BUFFER + 1, 0),
            readable(BUFFER + 1, 9999),
        ];
        let head = machine.transmit.push(&chain);
        machine.transmit.kick();
        assert_eq!(machine.transmit.wait_used(), (head, 0));
        machine.expect(&text);
        machine.console.write_config(8, &[b'!', 0, 0, 0]);
        machine.expect(b"!");
    }

    #[test]
    fn input_waits_for_buffers_and_fills_them_in_order() {
        let mut machine = Machine::new();
        let sent: Vec<u8> = (0..20_000_u32).map(|at| (at % 253) as u8).collect();
        let input = sent.clone();
        let mut client = machine.client.try_clone().unwrap();
        let writer = std::thread::spawn(move || client.write_all(&input));
        let mut got = Vec::new();
        while got.len() < sent.len() {
            let head = machine.receive.push(&[writable(BUFFER, 100)]);
            machine.receive.kick();
            let (used, count) = machine.receive.wait_used();
            assert_eq!(used, head);
            let mut bytes = vec![0; count as usize];
            let at = GuestAddress(BUFFER);
            machine.memory.read_slice(&mut bytes, at).unwrap();
            got.extend(bytes);
        }
        assert!(got == sent);
        writer.join().unwrap().unwrap();
        assert!(machine.interrupt.signalled().queues[0] > 0);
    }

    #[test]
    fn size_is_told_and_changes_are_signalled() {
        let machine = Machine::new();
        let mut config = [0; 8];
        machine.console.read_config(0, &mut config);
        assert_eq!(config, [132, 0, 43, 0, 1, 0, 0, 0]);
        machine.handle.resize(80, 25);
        machine.interrupt.wait(|signalled| signalled.config == 1);
        machine.console.read_config(1, &mut config);
        assert_eq!(config, [0, 25, 0, 1, 0, 0, 0, 0]);
        machine.console.read_config(u64::MAX, &mut config);
        assert_eq!(config, [0; 8]);
    }

    #[test]
    fn save_restore_save_agrees_and_waiting_input_arrives() {
        let mut machine = Machine::new();
        machine.client.write_all(b"typed").unwrap();
        wait_until("input", || machine.console.host.has_input());
        machine.console.deactivate();
        let saved = machine.console.save().unwrap();
        let (mut other, _) = console();
        other.restore(&saved).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        let mut receive = DriverQueue::new(&machine.memory, 0x3_0000, 64);
        receive.push(&[writable(BUFFER, 64)]);
        let queues = [(0, &receive)];
        let (activation, _interrupt) = activation(&machine.memory, other.features(), &queues);
        other.activate(activation).unwrap();
        assert_eq!(receive.wait_used().1, 5);
        let huge = ConsoleState {
            waiting: vec![0; INPUT_BYTES + 1],
        };
        let huge = Section::new(KIND, "console", VERSION, &huge).unwrap();
        assert!(matches!(
            other.restore(&huge),
            Err(StateError::Invalid { .. })
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_chains_need_a_reset_at_worst(
            chains in proptest::collection::vec(
                proptest::collection::vec((any::<bool>(), 0_u64..0x11_0000, 0_u32..9000), 1..4),
                1..10,
            ),
            wild in any::<Option<u64>>(),
        ) {
            let mut machine = Machine::new();
            machine.client.write_all(&[b'k'; 3000]).unwrap();
            for chain in &chains {
                let buffers: Vec<Buffer> = chain
                    .iter()
                    .map(|&(is_writable, address, len)| Buffer {
                        address: if len == 7 { wild.unwrap_or(address) } else { address },
                        len,
                        // Low addresses hold the rings, which a driver may well break.
                        writable: is_writable && address > BUFFER,
                    })
                    .collect();
                machine.receive.push(&buffers);
                machine.transmit.push(&buffers);
            }
            machine.receive.kick();
            machine.transmit.kick();
            prop_assert_eq!(machine.console.deactivate().len(), 2);
            machine.console.host.write(b"alive");
        }
    }
}
