//! The two ports that reset a PC without its keyboard controller: PIIX3's reset control (82371SB
//! datasheet, section 2.5.4) and the PS/2's system control port A.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::MachineControl;
use crate::bus::BusDevice;
use crate::state::{Section, StateError};

/// Reset control: a rising edge resets.
const RESET_CPU: u8 = 1 << 2;
/// Reset control: bits that keep what is written; bit 1 is hard reset rather than soft.
const RESET_CONTROL_BITS: u8 = RESET_CPU | 1 << 1;
/// Port A: a rising edge resets.
const PORT_A_RESET: u8 = 1 << 0;
/// Port A: the A20 gate, always open.
const PORT_A_A20: u8 = 1 << 1;

const KIND: &str = "reset-control";
const VERSION: u16 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    reset_control: u8,
    port_a: u8,
}

/// Both registers; the ports are the devices [`Port0xCf9`] and [`Port0x92`].
pub struct ResetControl {
    state: Mutex<State>,
    control: Arc<dyn MachineControl>,
}

/// Reset control, port 0xCF9: offset 0.
pub struct Port0xCf9(pub Arc<ResetControl>);

/// System control port A, port 0x92.
pub struct Port0x92(pub Arc<ResetControl>);

impl ResetControl {
    /// Both registers after power-on.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self {
            state: Mutex::default(),
            control,
        }
    }

    /// Power-on state.
    pub fn reset(&self) {
        self.update(|state| *state = State::default());
    }

    /// Both registers.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        Section::new(KIND, "", VERSION, &self.update(|state| *state))
    }

    /// Takes what [`Self::save`] gave.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not the reset control's"));
        }
        let restored: State = section.parse(VERSION)?;
        self.update(|state| *state = restored);
        Ok(())
    }

    fn update<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets a register, and asks for a reset on a rising edge of `bit`.
    fn write(&self, register: impl FnOnce(&mut State) -> &mut u8, value: u8, bit: u8) {
        let before = self.update(|state| std::mem::replace(register(state), value));
        if value & !before & bit != 0 {
            self.control.request_reset();
        }
    }
}

impl BusDevice for Port0xCf9 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = self.0.update(|state| state.reset_control);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let value = data[0] & RESET_CONTROL_BITS;
        self.0
            .write(|state| &mut state.reset_control, value, RESET_CPU);
    }
}

impl BusDevice for Port0x92 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = self.0.update(|state| state.port_a) | PORT_A_A20;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.0
            .write(|state| &mut state.port_a, data[0], PORT_A_RESET);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeControl;
    use super::*;

    fn fixture() -> (Arc<FakeControl>, Arc<ResetControl>) {
        let control = Arc::new(FakeControl::default());
        let device = Arc::new(ResetControl::new(control.clone()));
        (control, device)
    }

    #[test]
    fn reset_control_resets_on_a_rising_edge() {
        let (control, device) = fixture();
        let port = Port0xCf9(device);
        port.write(0, &[0x02]);
        assert_eq!(control.resets(), 0);
        port.write(0, &[0x06]);
        port.write(0, &[0x06]);
        assert_eq!(control.resets(), 1);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [0x06]);
    }

    #[test]
    fn port_a_resets_by_its_lowest_bit_and_keeps_a20_open() {
        let (control, device) = fixture();
        let port = Port0x92(device);
        port.write(0, &[0x00]);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!((data, control.resets()), ([0x02], 0));
        port.write(0, &[0x03]);
        assert_eq!(control.resets(), 1);
    }

    #[test]
    fn state_survives_save_and_restore() {
        let (_, source) = fixture();
        Port0xCf9(Arc::clone(&source)).write(0, &[0x02]);
        Port0x92(Arc::clone(&source)).write(0, &[0x03]);
        let section = source.save().unwrap();
        let (control, target) = fixture();
        target.restore(&section).unwrap();
        assert_eq!(target.save().unwrap(), section);
        assert_eq!(control.resets(), 0);
        target.reset();
        assert_ne!(target.save().unwrap(), section);
    }
}
