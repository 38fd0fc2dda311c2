//! The 16550 UART at ports 0x3f8 to 0x3ff (National Semiconductor PC16550D), registers by
//! `vm-superio`.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState as Registers};
use vm_superio::{Serial as Uart, Trigger};

use super::IrqLine;
use super::chardev::{Chardev, INPUT_BYTES, byte_string};
use crate::bus::BusDevice;
use crate::state::{Section, StateError};

/// Number of ports.
pub const SERIAL_PORTS: u64 = 8;

const KIND: &str = "serial";
const VERSION: u16 = 1;
/// Bytes of input that the UART's FIFO holds, at most.
const FIFO_BYTES: usize = 64;

/// RBR and THR.
const DATA_PORT: u8 = 0;
/// Modem control register, and its loopback bit.
const MCR_PORT: u8 = 4;
const MCR_LOOP: u8 = 1 << 4;

type Core = Uart<Line, NoEvents, Output>;

/// One serial port.
pub struct Serial {
    uart: Mutex<Core>,
    irq: Arc<dyn IrqLine>,
    host: Arc<Chardev>,
}

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    /// The controller's input is edge-triggered, as on the ISA bus.
    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

struct Output(Arc<Chardev>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A serial port as after power-on, that interrupts through `irq` and talks to `host`.
    pub fn new(irq: Arc<dyn IrqLine>, host: Arc<Chardev>) -> Arc<Self> {
        let uart = Uart::new(Line(Arc::clone(&irq)), Output(Arc::clone(&host)));
        let serial = Arc::new(Self {
            uart: Mutex::new(uart),
            irq,
            host,
        });
        let device = Arc::downgrade(&serial);
        serial.host.on_input(move || {
            if let Some(serial) = device.upgrade() {
                serial.feed(&mut serial.lock());
            }
        });
        serial
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.uart.lock().expect("no holder panics")
    }

    /// Moves waiting input into the FIFO, as much as it has room for.
    fn feed(&self, uart: &mut Core) {
        // In loopback mode, in which drivers probe the port, the line is cut off.
        if uart.read(MCR_PORT) & MCR_LOOP != 0 {
            return;
        }
        let mut bytes = [0; FIFO_BYTES];
        let room = uart.fifo_capacity().min(FIFO_BYTES);
        let count = match self.host.read_input(&mut bytes[..room]) {
            0 => return,
            count => count,
        };
        // There is room, and the interrupt line cannot fail.
        let _ = uart.enqueue_raw_bytes(&bytes[..count]);
    }

    /// Puts the port into its state after power-on.
    pub fn reset(&self) {
        *self.lock() = Uart::new(Line(Arc::clone(&self.irq)), Output(Arc::clone(&self.host)));
    }

    /// Registers and FIFO, as section `serial`. The history is saved by [`Chardev::save`].
    ///
    /// # Errors
    /// [`StateError`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        let uart = self.lock();
        let state = SerialState {
            waiting: self.host.waiting_input(),
            ..uart.state().into()
        };
        Section::new(KIND, "", VERSION, &state)
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`]; the port is unchanged.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        let mut state: SerialState = section.parse(VERSION)?;
        if state.waiting.len() > INPUT_BYTES {
            return Err(section.invalid(format!("{} bytes of input", state.waiting.len())));
        }
        let waiting = std::mem::take(&mut state.waiting);
        let line = Line(Arc::clone(&self.irq));
        let output = Output(Arc::clone(&self.host));
        let uart = Uart::from_state(&state.into(), line, NoEvents, output)
            .map_err(|error| section.invalid(error.to_string()))?;
        let mut current = self.lock();
        *current = uart;
        self.host.restore_input(&waiting);
        self.feed(&mut current);
        Ok(())
    }
}

/// Saved registers, named as in PC16550D's table of registers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct SerialState {
    dll: u8,
    dlm: u8,
    ier: u8,
    iir: u8,
    lcr: u8,
    lsr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    #[serde(with = "byte_string")]
    fifo: Vec<u8>,
    /// Input that the FIFO has no room for.
    #[serde(with = "byte_string")]
    waiting: Vec<u8>,
}

impl Default for SerialState {
    fn default() -> Self {
        Registers::default().into()
    }
}

impl From<Registers> for SerialState {
    fn from(registers: Registers) -> Self {
        Self {
            dll: registers.baud_divisor_low,
            dlm: registers.baud_divisor_high,
            ier: registers.interrupt_enable,
            iir: registers.interrupt_identification,
            lcr: registers.line_control,
            lsr: registers.line_status,
            mcr: registers.modem_control,
            msr: registers.modem_status,
            scr: registers.scratch,
            fifo: registers.in_buffer,
            waiting: Vec::new(),
        }
    }
}

impl From<SerialState> for Registers {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.dll,
            baud_divisor_high: state.dlm,
            interrupt_enable: state.ier,
            interrupt_identification: state.iir,
            line_control: state.lcr,
            line_status: state.lsr,
            modem_control: state.mcr,
            modem_status: state.msr,
            scratch: state.scr,
            in_buffer: state.fifo,
        }
    }
}

impl BusDevice for Serial {
    /// A wider access is one to each port in turn, as the ISA bus splits it.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.lock();
        for (port, byte) in (offset as u8..).zip(data) {
            *byte = uart.read(port);
            // Not before it is empty: each feeding is an interrupt.
            if port == DATA_PORT && uart.fifo_capacity() == FIFO_BYTES && self.host.has_input() {
                self.feed(&mut uart);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.lock();
        for (port, &byte) in (offset as u8..).zip(data) {
            // Neither the interrupt line nor the log can fail.
            let _ = uart.write(port, byte);
            if port == MCR_PORT {
                self.feed(&mut uart);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::super::chardev::ChardevResources;
    use super::*;

    const IER_PORT: u64 = 1;
    const IIR_PORT: u64 = 2;
    const LSR_PORT: u64 = 5;

    #[derive(Default)]
    struct Pulses(AtomicU32);

    impl IrqLine for Pulses {
        fn set(&self, asserted: bool) {
            self.0.fetch_add(asserted.into(), Ordering::SeqCst);
        }
    }

    fn serial() -> (Arc<Serial>, Arc<Pulses>) {
        let host = Chardev::start("test", ChardevResources::Off, || {}).unwrap();
        let irq = Arc::new(Pulses::default());
        (Serial::new(irq.clone(), Arc::new(host)), irq)
    }

    fn read(serial: &Serial, port: u64) -> u8 {
        let mut data = [0];
        BusDevice::read(serial, port, &mut data);
        data[0]
    }

    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn guest_output_reaches_the_client() {
        let (serial, _) = serial();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        for byte in b"hello" {
            BusDevice::write(&*serial, 0, &[*byte]);
        }
        serial.host.attach(theirs);
        let mut got = [0; 5];
        ours.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }

    #[test]
    fn transmitter_empty_interrupts_once_until_acknowledged() {
        let (serial, irq) = serial();
        BusDevice::write(&*serial, IER_PORT, &[2]);
        BusDevice::write(&*serial, 0, b"a");
        BusDevice::write(&*serial, 0, b"b");
        assert_eq!(irq.0.load(Ordering::SeqCst), 1);
        assert_eq!(read(&serial, IIR_PORT) & 0xf, 2);
        BusDevice::write(&*serial, 0, b"c");
        assert_eq!(irq.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole_and_in_order() {
        use std::io::Write as _;
        let (serial, irq) = serial();
        BusDevice::write(&*serial, IER_PORT, &[1]);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        serial.host.attach(theirs);
        let sent: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        let input = sent.clone();
        let writer = std::thread::spawn(move || ours.write_all(&input).map(|()| ours));
        let mut got: Vec<u8> = Vec::new();
        while got.len() < sent.len() {
            until(|| read(&serial, LSR_PORT) & 1 != 0);
            got.push(read(&serial, 0));
        }
        assert_eq!(got, sent);
        assert!(irq.0.load(Ordering::SeqCst) > 0);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn input_in_loopback_mode_waits() {
        use std::io::Write as _;
        let (serial, _) = serial();
        BusDevice::write(&*serial, 4, &[MCR_LOOP]);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        serial.host.attach(theirs);
        ours.write_all(b"k").unwrap();
        until(|| serial.host.has_input());
        assert_eq!(read(&serial, LSR_PORT) & 1, 0);
        BusDevice::write(&*serial, 4, &[0]);
        assert_eq!(read(&serial, LSR_PORT) & 1, 1);
        assert_eq!(read(&serial, 0), b'k');
    }

    #[test]
    fn restore_fifo_too_long_is_refused() {
        let (serial, _) = serial();
        let state = SerialState {
            fifo: vec![0; 65],
            ..SerialState::default()
        };
        let section = Section::new(KIND, "", VERSION, &state).unwrap();
        let refused = serial.restore(&section);
        assert!(matches!(refused, Err(StateError::Invalid { .. })));
    }

    #[test]
    fn input_that_waits_is_saved_and_comes_after_the_fifo() {
        use std::io::Write as _;
        let (serial, _) = serial();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        serial.host.attach(theirs);
        let sent: Vec<u8> = (0..200).collect();
        ours.write_all(&sent).unwrap();
        until(|| serial.host.waiting_input().len() == 200 - FIFO_BYTES);
        let saved = serial.save().unwrap();
        let (other, _) = self::serial();
        other.restore(&saved).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        let got: Vec<u8> = (0..200).map(|_| read(&other, 0)).collect();
        assert_eq!(got, sent);
    }

    proptest! {
        #[test]
        fn any_accesses_save_restore_save_agree(
            accesses in proptest::collection::vec((any::<bool>(), 0_u64..8, any::<u8>()), 0..200),
        ) {
            let (serial, _) = serial();
            for (is_write, port, value) in accesses {
                if is_write {
                    BusDevice::write(&*serial, port, &[value]);
                } else {
                    read(&serial, port);
                }
            }
            let saved = serial.save().unwrap();
            let (other, _) = self::serial();
            other.restore(&saved).unwrap();
            prop_assert_eq!(other.save().unwrap(), saved);
        }
    }
}
