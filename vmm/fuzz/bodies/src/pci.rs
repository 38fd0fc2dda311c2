//! Every register of the machine: configuration space through ports 0xCF8 to 0xCFF, the BARs of
//! the virtio transports, and the fixed devices' ports, at any offset and width, between resets,
//! pauses and saves.

use std::sync::{Arc, LazyLock, Mutex};

use pindah_vmm::arch::x86_64::layout;

use crate::driver::Driver;
use crate::input::Input;
use crate::machine::{self, BAR_BYTES, Virtio, width};
use crate::platform::{Machine, assert_same};

static FIXTURE: LazyLock<Mutex<Machine>> = LazyLock::new(|| Mutex::new(Machine::new()));

/// First port of each fixed device, and how many there are.
const PORTS: [(u64, u64); 10] = [
    (layout::PORT_PCI_CONFIG, 8),
    (layout::PORT_RTC, 2),
    (layout::PORT_I8042_DATA, 1),
    (layout::PORT_I8042_COMMAND, 1),
    (layout::PORT_SYSTEM_CONTROL_A, 1),
    (layout::PORT_APM, 2),
    (layout::PORT_SERIAL, 8),
    (layout::PORT_RUNNER_ID, 4),
    (layout::PORT_FW_CFG, 12),
    (layout::PORT_ACPI_PM, 0x40),
];

/// Runs one case.
pub fn run(data: &[u8]) {
    let machine = FIXTURE.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    machine.reset();
    machine::fill(&machine.memory, 0);
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        step(&machine, input);
    }
    machine.reset();
    for device in &machine.virtio {
        assert_identity(device);
    }
}

fn step(machine: &Machine, input: &mut Input) {
    match input.below(16) {
        0..=4 => config_space(machine, input),
        5 | 6 => {
            let (base, len) = input.pick(&PORTS);
            let port = base + input.below(len as usize) as u64;
            access(&machine.ports, input, port, input_port_width);
        }
        7..=10 => bar(machine, input),
        11 | 12 => {
            let device = device(machine, input);
            Driver::new(device).start(input);
        }
        13 => {
            let device = device(machine, input);
            Driver::new(device).disturb(input);
        }
        14 => {
            let saved = machine.save();
            machine.restore(&saved).expect("what was saved just now");
            assert_same(&machine.save(), &saved);
            machine.resume();
        }
        _ => machine.reset(),
    }
}

fn device<'a>(machine: &'a Machine, input: &mut Input) -> &'a Virtio {
    &machine.virtio[input.below(machine.virtio.len())]
}

fn input_port_width(input: &mut Input) -> usize {
    input.pick(&[1, 2, 4])
}

fn access(
    bus: &Arc<pindah_vmm::bus::Bus>,
    input: &mut Input,
    address: u64,
    width: fn(&mut Input) -> usize,
) {
    let width = width(input);
    if input.chance(2) {
        bus.read(address, &mut [0; 8][..width]);
    } else {
        let value = input.edge().to_le_bytes();
        bus.write(address, &value[..width]);
    }
}

/// Selects a register of a function that is there, or of none.
fn config_space(machine: &Machine, input: &mut Input) {
    let slot = match input.below(8) {
        0 => input.below(32) as u8,
        1 => layout::SLOT_ISA,
        2 => layout::SLOT_HOST_BRIDGE,
        _ => device(machine, input).slot,
    };
    let function = input.pick(&[0, 0, 0, 3, 1]);
    // Command, BARs, capabilities: most of the writable ones.
    let register = match input.below(4) {
        0 => 0x04,
        1 => 0x20,
        2 => 0x40 + input.below(0x80) as u32,
        _ => input.below(0x100) as u32,
    };
    let address = 1 << 31 | u32::from(slot) << 11 | function << 8 | register & 0xfc;
    machine
        .ports
        .write(layout::PORT_PCI_CONFIG, &address.to_le_bytes());
    let port = layout::PORT_PCI_CONFIG + 4 + u64::from(register & 3);
    if register == 0x20 && input.chance(2) {
        // On top of another function's, or where a sane guest would put it.
        let base = layout::PCI_MMIO32.start + input.below(32) as u64 * BAR_BYTES;
        machine.ports.write(port, &(base as u32).to_le_bytes());
    } else {
        access(&machine.ports, input, port, input_port_width);
    }
}

/// A register of a BAR, wherever the guest has put it.
fn bar(machine: &Machine, input: &mut Input) {
    let device = device(machine, input);
    let base = if input.chance(4) {
        layout::PCI_MMIO32.start + input.below(32) as u64 * BAR_BYTES
    } else {
        device.base()
    };
    let offset = match input.below(8) {
        0..=2 => input.below(0x40),
        3 => 0x1000 + input.below(4),
        4 => 0x2000 + input.below(0x80),
        5 => 0x3000 + input.below(0x20),
        6 => 0x4000 + input.below(0x100),
        _ => input.below(BAR_BYTES as usize),
    };
    let address = base + offset as u64;
    if !machine
        .virtio
        .iter()
        .any(|device| device.ioeventfds.write(address))
    {
        access(&machine.mmio, input, address, width);
    }
}

/// After a reset of the machine the function is in its first place and says what it is.
fn assert_identity(device: &Virtio) {
    let mut queues = [0; 2];
    device.read(0x12, &mut queues);
    assert_eq!(u16::from_le_bytes(queues), device.queues);
    let mut status = [0xff];
    device.read(0x14, &mut status);
    assert_eq!(status, [0]);
}
