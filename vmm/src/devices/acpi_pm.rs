//! ACPI fixed hardware (ACPI 6.5, section 4.8) at the register offsets of PIIX4's power
//! management block (82371AB datasheet, section 7.2): power button, soft off, PM timer.
//!
//! There is no system management mode: ACPI is always on (`SCI_EN` reads as set).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{IrqLine, MachineControl};
use crate::bus::BusDevice;
use crate::state::{Section, StateError};

/// Ports that the block takes.
pub const PORTS: u64 = 0x40;
/// Offset of PM1_STS; PM1_EN follows.
pub const PM1_STATUS: u16 = 0x00;
/// Bytes of PM1_STS and PM1_EN.
pub const PM1_EVENT_LEN: u8 = 4;
/// Offset of PM1_CNT.
pub const PM1_CONTROL: u16 = 0x04;
/// Bytes of PM1_CNT.
pub const PM1_CONTROL_LEN: u8 = 2;
/// Offset of the PM timer.
pub const PM_TIMER: u16 = 0x08;
/// Bytes of the PM timer.
pub const PM_TIMER_LEN: u8 = 4;
/// Offset of GPE0_STS; GPE0_EN follows.
pub const GPE0_STATUS: u16 = 0x0c;
/// Bytes of GPE0_STS and GPE0_EN.
pub const GPE0_LEN: u8 = 4;
/// `SLP_TYP` that switches off. 0, because firmware that knows no tables writes that.
pub const SLEEP_TYPE_S5: u8 = 0;

/// Frequency of the PM timer (section 4.8.2.1).
const PM_TIMER_HZ: u128 = 3_579_545;

/// PM1_STS and PM1_EN.
const TIMER: u16 = 1 << 0;
const POWER_BUTTON: u16 = 1 << 8;
/// What the guest can enable: timer, global lock, power button, sleep button, RTC.
const PM1_ENABLE_BITS: u16 = 0x0721;
/// PM1_CNT.
const SCI_EN: u16 = 1 << 0;
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_BITS: u16 = 7 << SLEEP_TYPE_SHIFT;
/// In the upper byte of PM1_CNT, with the sleep type.
const SLEEP_ENABLE: u16 = 1 << 13;
/// Bits of PM1_CNT that keep what is written: BM_RLD and the sleep type.
const PM1_CONTROL_BITS: u16 = 0x0002 | SLEEP_TYPE_BITS;
/// Half a period of the PM timer: TMR_STS is set when the top bit changes.
const TOP_BIT: u64 = 1 << 31;

const KIND: &str = "acpi-pm";
const VERSION: u16 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe_enable: u16,
    /// The timer, as the time that it has counted in nanoseconds.
    timer_ns: u64,
    /// Halves of its period that TMR_STS knows of.
    timer_halves: u64,
}

struct Inner {
    state: State,
    /// When the timer stood at `state.timer_ns`.
    since: Instant,
    /// Level of the interrupt.
    asserted: bool,
}

/// The power management block.
pub struct AcpiPm {
    inner: Mutex<Inner>,
    sci: Arc<dyn IrqLine>,
    control: Arc<dyn MachineControl>,
}

impl AcpiPm {
    /// A block at rest. `sci` is a level-triggered line.
    pub fn new(sci: Arc<dyn IrqLine>, control: Arc<dyn MachineControl>) -> Self {
        let inner = Inner {
            state: State::default(),
            since: Instant::now(),
            asserted: false,
        };
        Self {
            inner: Mutex::new(inner),
            sci,
            control,
        }
    }

    /// Presses the power button. Returns whether the guest listens: if not, it will not know
    /// until it enables the event.
    pub fn press_power_button(&self) -> bool {
        let mut inner = self.lock();
        inner.state.status |= POWER_BUTTON;
        inner.update_sci(&*self.sci);
        inner.state.enable & POWER_BUTTON != 0
    }

    /// Power-on state; the timer counts on.
    pub fn reset(&self) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.state = State {
            timer_ns: inner.counted(now),
            timer_halves: inner.state.timer_halves,
            ..State::default()
        };
        inner.since = now;
        inner.update_sci(&*self.sci);
    }

    /// All registers, and where the timer stands.
    ///
    /// # Errors
    /// [`StateError::Body`] if it cannot be encoded.
    pub fn save(&self) -> Result<Section, StateError> {
        let inner = self.lock();
        let state = State {
            timer_ns: inner.counted(Instant::now()),
            ..inner.state.clone()
        };
        Section::new(KIND, "", VERSION, &state)
    }

    /// Takes what [`Self::save`] gave; the timer goes on from where it stood. The interrupt
    /// controllers must have their state already.
    ///
    /// # Errors
    /// [`StateError`] if the section is not one of ours.
    pub fn restore(&self, section: &Section) -> Result<(), StateError> {
        if section.kind != KIND {
            return Err(section.invalid("not the power management block's"));
        }
        let mut state: State = section.parse(VERSION)?;
        state.enable &= PM1_ENABLE_BITS;
        state.control &= PM1_CONTROL_BITS;
        let mut inner = self.lock();
        *inner = Inner {
            state,
            since: Instant::now(),
            asserted: false,
        };
        inner.asserted = inner.wants_sci();
        self.sci.set(inner.asserted);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What the timer has counted, in nanoseconds.
    fn counted(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.since);
        self.state.timer_ns.wrapping_add(passed.as_nanos() as u64)
    }

    /// The timer in ticks, of which the guest sees the low 32 bits.
    fn ticks(&self, now: Instant) -> u64 {
        let counted = u128::from(self.counted(now));
        (counted * PM_TIMER_HZ / Duration::from_secs(1).as_nanos()) as u64
    }

    /// Sets TMR_STS if the top bit has changed since it was looked at last. Nobody wakes up for
    /// it: no system that we know of enables this interrupt.
    fn update_timer_status(&mut self, now: Instant) {
        let halves = self.ticks(now) / TOP_BIT;
        if halves != self.state.timer_halves {
            self.state.timer_halves = halves;
            self.state.status |= TIMER;
        }
    }

    fn wants_sci(&self) -> bool {
        self.state.status & self.state.enable & PM1_ENABLE_BITS != 0
    }

    fn update_sci(&mut self, sci: &dyn IrqLine) {
        let level = self.wants_sci();
        if level != self.asserted {
            self.asserted = level;
            sci.set(level);
        }
    }

    /// The registers that are there: 16 bytes, then nothing but zeroes.
    fn registers(&self, now: Instant) -> [u8; 16] {
        let State {
            status,
            enable,
            control,
            gpe_enable,
            ..
        } = self.state;
        let mut registers = [0; 16];
        registers[0..2].copy_from_slice(&status.to_le_bytes());
        registers[2..4].copy_from_slice(&enable.to_le_bytes());
        registers[4..6].copy_from_slice(&(control | SCI_EN).to_le_bytes());
        registers[8..12].copy_from_slice(&(self.ticks(now) as u32).to_le_bytes());
        registers[14..16].copy_from_slice(&gpe_enable.to_le_bytes());
        registers
    }

    /// Writes one byte. Returns whether the guest went to sleep for good.
    fn write(&mut self, offset: u64, value: u8) -> bool {
        let shift = 8 * (offset % 2);
        let (bits, mask) = (u16::from(value) << shift, 0xff << shift);
        match offset & !1 {
            0x00 => self.state.status &= !bits,
            0x02 => self.state.enable = (self.state.enable & !mask | bits) & PM1_ENABLE_BITS,
            0x04 => {
                self.state.control = (self.state.control & !mask | bits) & PM1_CONTROL_BITS;
                let sleep_type = (self.state.control & SLEEP_TYPE_BITS) >> SLEEP_TYPE_SHIFT;
                return bits & SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5);
            }
            0x0e => self.state.gpe_enable = self.state.gpe_enable & !mask | bits,
            _ => {}
        }
        false
    }
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.lock();
        let now = Instant::now();
        if offset < u64::from(PM1_EVENT_LEN) {
            inner.update_timer_status(now);
            inner.update_sci(&*self.sci);
        }
        let registers = inner.registers(now);
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = registers.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let mut off = false;
        for (at, &byte) in (offset..).zip(data) {
            off |= inner.write(at, byte);
        }
        inner.update_sci(&*self.sci);
        drop(inner);
        if off {
            self.control.request_power_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fake::{FakeControl, FakeLine};
    use super::*;

    struct Fixture {
        line: Arc<FakeLine>,
        control: Arc<FakeControl>,
        pm: AcpiPm,
    }

    fn fixture() -> Fixture {
        let line = Arc::new(FakeLine::default());
        let control = Arc::new(FakeControl::default());
        let pm = AcpiPm::new(line.clone(), control.clone());
        Fixture { line, control, pm }
    }

    fn read16(pm: &AcpiPm, offset: u16) -> u16 {
        let mut data = [0; 2];
        pm.read(u64::from(offset), &mut data);
        u16::from_le_bytes(data)
    }

    fn timer(pm: &AcpiPm) -> u32 {
        let mut data = [0; 4];
        pm.read(u64::from(PM_TIMER), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn power_button_interrupts_once_enabled_until_acknowledged() {
        let Fixture { line, pm, .. } = fixture();
        assert!(!pm.press_power_button());
        assert!(!line.level());
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(line.level());
        assert_eq!(read16(&pm, PM1_STATUS) & POWER_BUTTON, POWER_BUTTON);
        pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert!(!line.level());
        assert!(pm.press_power_button());
        assert!(line.level());
    }

    #[test]
    fn sleep_enable_with_s5_switches_off_and_reads_back_as_zero() {
        let Fixture { control, pm, .. } = fixture();
        pm.write(4, &(SLEEP_ENABLE | 1 << SLEEP_TYPE_SHIFT).to_le_bytes());
        assert_eq!(control.power_offs(), 0);
        pm.write(4, &SLEEP_ENABLE.to_le_bytes());
        assert_eq!(control.power_offs(), 1);
        assert_eq!(read16(&pm, PM1_CONTROL), SCI_EN);
        // As two bytes, the way some firmware writes it.
        pm.write(4, &[0]);
        pm.write(5, &[(SLEEP_ENABLE >> 8) as u8]);
        assert_eq!(control.power_offs(), 2);
    }

    #[test]
    fn timer_counts_at_its_frequency() {
        let now = Instant::now();
        let inner = Inner {
            state: State::default(),
            since: now,
            asserted: false,
        };
        assert_eq!(inner.ticks(now + Duration::from_secs(10)), 35_795_450);
        // 20 minutes: one whole period of 32 bits.
        assert!(inner.ticks(now + Duration::from_secs(1200)) > 1 << 32);
    }

    #[test]
    fn timer_status_is_set_when_the_top_bit_changes() {
        let now = Instant::now();
        let mut inner = Inner {
            state: State::default(),
            since: now,
            asserted: false,
        };
        inner.update_timer_status(now + Duration::from_secs(599));
        assert_eq!(inner.state.status, 0);
        inner.update_timer_status(now + Duration::from_secs(600));
        assert_eq!(inner.state.status, TIMER);
    }

    #[test]
    fn timer_goes_on_after_restore() {
        let source = fixture().pm;
        source.lock().state.timer_ns = 3_600_000_000_000;
        let before = timer(&source);
        let section = source.save().unwrap();
        let target = fixture().pm;
        target.restore(&section).unwrap();
        let after = timer(&target);
        // Within five minutes, and not back at zero: this host may be slow.
        assert!(after.wrapping_sub(before) < 300 * PM_TIMER_HZ as u32);
    }

    #[test]
    fn restore_raises_a_pending_interrupt() {
        let source = fixture().pm;
        source.write(2, &POWER_BUTTON.to_le_bytes());
        source.press_power_button();
        let target = fixture();
        target.pm.restore(&source.save().unwrap()).unwrap();
        assert!(target.line.level());
    }

    #[test]
    fn reset_forgets_a_pressed_button() {
        let Fixture { line, pm, .. } = fixture();
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        pm.press_power_button();
        pm.reset();
        assert!(!line.level());
        assert_eq!(read16(&pm, PM1_STATUS), 0);
    }

    proptest! {
        #[test]
        fn random_accesses_survive_save_and_restore(
            accesses in prop::collection::vec((0_u64..64, any::<u32>(), 0_usize..3), 0..40),
        ) {
            let pm = fixture().pm;
            for (offset, value, width) in accesses {
                let len = (1 << width).min(64 - offset as usize);
                pm.write(offset, &value.to_le_bytes()[..len]);
                pm.read(offset, &mut [0; 4][..len]);
            }
            let restored = fixture().pm;
            restored.restore(&pm.save().unwrap()).unwrap();
            let zeroed = |pm: &AcpiPm| State { timer_ns: 0, ..pm.lock().state.clone() };
            prop_assert_eq!(zeroed(&pm), zeroed(&restored));
        }
    }
}
