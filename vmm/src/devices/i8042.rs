//! Keyboard controller without a keyboard (IBM PC AT Technical Reference, 8042): what is left
//! of it is the reset line, and answers that let firmware and drivers find nothing quickly.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::MachineControl;
use crate::bus::BusDevice;
use crate::state::{Section, StateError};

/// Status: a byte waits in the output buffer.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Status: the self-test has passed.
const STATUS_SYSTEM: u8 = 1 << 2;
/// Status: what was written last was a command.
const STATUS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;

const READ_CONFIGURATION: u8 = 0x20;
const WRITE_CONFIGURATION: u8 = 0x60;
const DISABLE_AUX: u8 = 0xa7;
const ENABLE_AUX: u8 = 0xa8;
const TEST_AUX: u8 = 0xa9;
const TEST_SELF: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const READ_INPUT_PORT: u8 = 0xc0;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// From here on, each clear bit of the low nibble pulses a line of the output port.
const PULSE_OUTPUT_PORT: u8 = 0xf0;

/// Answer to a passed self-test.
const SELF_TEST_PASSED: u8 = 0x55;
/// Answer to the test of a port that nothing is plugged into: its clock line is stuck low.
const PORT_TEST_FAILED: u8 = 0x01;
/// Input port: the keyboard is not locked.
const INPUT_PORT: u8 = 1 << 7;
/// Output port: the CPU's reset line, active low.
const OUTPUT_RESET: u8 = 1 << 0;
/// Output port: the A20 gate, always open.
const OUTPUT_A20: u8 = 1 << 1;

/// Configuration: the system flag, which the status shows too.
const CONFIGURATION_SYSTEM: u8 = 1 << 2;
const CONFIGURATION_KEYBOARD_OFF: u8 = 1 << 4;
const CONFIGURATION_AUX_OFF: u8 = 1 << 5;

const KIND: &str = "i8042";
const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    configuration: u8,
    /// The byte in the output buffer.
    output: Option<u8>,
    /// The command whose data byte is awaited.
    pending: Option<u8>,
    last_was_command: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            configuration: CONFIGURATION_KEYBOARD_OFF | CONFIGURATION_AUX_OFF,
            output: None,
            pending: None,
            last_was_command: false,
        }
    }
}

/// The controller; its two ports are the devices [`Data`] and [`Command`].
pub struct I8042 {
    state: Mutex<State>,
    control: Arc<dyn MachineControl>,
}

/// Port 0x60.
pub struct Data(pub Arc<I8042>);

/// Port 0x64.
pub struct Command(pub Arc<I8042>);

impl I8042 {
    /// A controller after power-on.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self {
            state: Mutex::default(),
            control,
        }
    }

    /// Power-on state.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// Buffers and configuration.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        Section::new(KIND, "", VERSION, &*self.lock())
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not the i8042's"));
        }
        *self.lock() = section.parse(VERSION)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_command(&self, command: u8) {
        if self.lock().command(command) {
            self.control.request_reset();
        }
    }

    fn write_data(&self, value: u8) {
        if self.lock().data(value) {
            self.control.request_reset();
        }
    }
}

impl State {
    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        if self.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.configuration & CONFIGURATION_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    /// Carries out a command. Returns whether it pulls the reset line.
    fn command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.pending = None;
        match command {
            READ_CONFIGURATION => self.output = Some(self.configuration),
            WRITE_CONFIGURATION | WRITE_OUTPUT_PORT => self.pending = Some(command),
            DISABLE_AUX => self.configuration |= CONFIGURATION_AUX_OFF,
            ENABLE_AUX => self.configuration &= !CONFIGURATION_AUX_OFF,
            DISABLE_KEYBOARD => self.configuration |= CONFIGURATION_KEYBOARD_OFF,
            ENABLE_KEYBOARD => self.configuration &= !CONFIGURATION_KEYBOARD_OFF,
            TEST_SELF => {
                self.configuration |= CONFIGURATION_SYSTEM;
                self.output = Some(SELF_TEST_PASSED);
            }
            TEST_AUX | TEST_KEYBOARD => self.output = Some(PORT_TEST_FAILED),
            READ_INPUT_PORT => self.output = Some(INPUT_PORT),
            READ_OUTPUT_PORT => self.output = Some(OUTPUT_RESET | OUTPUT_A20),
            PULSE_OUTPUT_PORT.. => return command & OUTPUT_RESET == 0,
            _ => {}
        }
        false
    }

    /// Takes a byte at the data port: of a command, or for a keyboard that is not there.
    /// Returns whether it pulls the reset line.
    fn data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.pending.take() {
            Some(WRITE_CONFIGURATION) => self.configuration = value,
            Some(WRITE_OUTPUT_PORT) => return value & OUTPUT_RESET == 0,
            _ => {}
        }
        false
    }
}

impl BusDevice for Data {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = self.0.lock().output.take().unwrap_or(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.write_data(data[0]);
    }
}

impl BusDevice for Command {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = self.0.lock().status();
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.write_command(data[0]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fake::FakeControl;
    use super::*;

    struct Fixture {
        control: Arc<FakeControl>,
        data: Data,
        command: Command,
    }

    fn fixture() -> Fixture {
        let control = Arc::new(FakeControl::default());
        let device = Arc::new(I8042::new(control.clone()));
        Fixture {
            control,
            data: Data(Arc::clone(&device)),
            command: Command(device),
        }
    }

    fn read(device: &dyn BusDevice) -> u8 {
        let mut data = [0];
        device.read(0, &mut data);
        data[0]
    }

    #[test]
    fn pulse_of_the_reset_line_asks_for_a_reset() {
        let Fixture {
            control, command, ..
        } = fixture();
        command.write(0, &[0xff]);
        assert_eq!(control.resets(), 0);
        command.write(0, &[0xfe]);
        assert_eq!(control.resets(), 1);
    }

    #[test]
    fn output_port_with_reset_low_asks_for_a_reset() {
        let Fixture {
            control,
            data,
            command,
        } = fixture();
        command.write(0, &[WRITE_OUTPUT_PORT]);
        data.write(0, &[OUTPUT_RESET | OUTPUT_A20]);
        assert_eq!(control.resets(), 0);
        command.write(0, &[WRITE_OUTPUT_PORT]);
        data.write(0, &[OUTPUT_A20]);
        assert_eq!(control.resets(), 1);
    }

    #[test]
    fn self_test_passes_and_no_keyboard_is_found() {
        let Fixture { data, command, .. } = fixture();
        assert_eq!(read(&command) & STATUS_OUTPUT_FULL, 0);
        command.write(0, &[TEST_SELF]);
        let expected = STATUS_OUTPUT_FULL | STATUS_SYSTEM | STATUS_COMMAND;
        assert_eq!(read(&command) & expected, expected);
        assert_eq!(read(&data), SELF_TEST_PASSED);
        command.write(0, &[TEST_KEYBOARD]);
        assert_eq!(read(&data), PORT_TEST_FAILED);
        // A keyboard's reset command: nobody answers.
        data.write(0, &[0xff]);
        assert_eq!(read(&command) & STATUS_OUTPUT_FULL, 0);
    }

    #[test]
    fn configuration_reads_back() {
        let Fixture { data, command, .. } = fixture();
        command.write(0, &[WRITE_CONFIGURATION]);
        data.write(0, &[0x47]);
        command.write(0, &[DISABLE_KEYBOARD]);
        command.write(0, &[READ_CONFIGURATION]);
        assert_eq!(read(&data), 0x57);
    }

    proptest! {
        #[test]
        fn random_accesses_survive_save_and_restore(
            accesses in prop::collection::vec((any::<bool>(), any::<u32>(), 0_usize..3), 0..40),
        ) {
            let Fixture { data, command, .. } = fixture();
            for (is_command, value, width) in accesses {
                let value = &value.to_le_bytes()[..1 << width];
                let device: &dyn BusDevice = if is_command { &command } else { &data };
                device.write(0, value);
                device.read(0, &mut [0; 4][..1 << width]);
            }
            let section = data.0.save().unwrap();
            let restored = fixture().data;
            restored.0.restore(&section).unwrap();
            prop_assert_eq!(restored.0.save().unwrap(), section);
        }
    }
}
