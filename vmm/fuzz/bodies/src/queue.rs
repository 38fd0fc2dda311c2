//! Rings and descriptor chains, through the workers of the random device, the console and the
//! balloon.

use std::sync::{Arc, LazyLock, Mutex};

use pindah_vmm::devices::chardev::Chardev;
use pindah_vmm::devices::virtio::balloon::Balloon;
use pindah_vmm::devices::virtio::console::Console;
use pindah_vmm::devices::virtio::rng::Rng;
use pindah_vmm_api::BalloonConfig;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{Buffer, DATA, Driver, buffers};
use crate::input::Input;
use crate::machine::{self, Virtio, chardev};

struct Fixture {
    rng: Virtio,
    console: Virtio,
    host: Arc<Chardev>,
    balloon: Virtio,
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| {
    let memory = machine::memory();
    let rng = Rng::new("rng").expect("a host with a thread to spare");
    let host = chardev("console");
    let console = Console::new("console", Arc::clone(&host), None);
    let (console, _) = console.expect("a host with a thread to spare");
    let balloon = Balloon::new("balloon", &BalloonConfig::default(), &memory, 1);
    let balloon = balloon.expect("a host with a thread to spare");
    Mutex::new(Fixture {
        rng: Virtio::new(Box::new(rng), &memory),
        console: Virtio::new(Box::new(console), &memory),
        host,
        balloon: Virtio::new(Box::new(balloon), &memory),
    })
});

/// Runs one case.
pub fn run(data: &[u8]) {
    let fixture = FIXTURE.lock().expect("a failed case ends the process");
    let mut input = Input::new(data);
    // The queue that is asked for a plain request at the end, and whether it wants to write.
    let (device, queue, writable) = match input.below(3) {
        0 => (&fixture.rng, 0, true),
        1 => (&fixture.console, 1, false),
        _ => (&fixture.balloon, 0, false),
    };
    let mut driver = Driver::new(device);
    driver.reset();
    machine::fill(&device.memory, 0);
    for _ in 0..input.below(4) {
        push(&mut driver, &mut input, device);
    }
    driver.start(&mut input);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=3 => push(&mut driver, &mut input, device),
            4 | 5 => driver.kick(input.below(8) as u64),
            6 => fixture.host.restore_input(&input.bytes(64)),
            _ => driver.disturb(&mut input),
        }
    }
    device.transport.pause();
    let saved = device.transport.save();
    saved.expect("a paused device can be saved");
    device.transport.resume();
    let buffer = Buffer {
        address: DATA,
        len: 16,
        writable,
    };
    // Text to the console, the last page of RAM four times to the balloon.
    let content = 0x3f_u32.to_le_bytes().repeat(4);
    let used = driver.assert_works(queue, &[(buffer, &content)]);
    assert!(used <= 16, "no more than there was room for");
}

/// Something that may mean something to the device: page numbers, statistics, text.
fn push(driver: &mut Driver, input: &mut Input, device: &Virtio) {
    let buffers = buffers(input, 4);
    if let (Some(first), true) = (buffers.first(), input.chance(2)) {
        let mut content = input.bytes(40);
        for number in content.chunks_exact_mut(4) {
            // A page of RAM, or nearly so.
            number[1..].fill(0);
        }
        let at = GuestAddress(first.address);
        let written = device.memory.write_slice(&content, at);
        written.expect("buffers are in RAM");
    }
    let queue = input.below(device.queues.into());
    driver.push(input, queue, &buffers);
}
