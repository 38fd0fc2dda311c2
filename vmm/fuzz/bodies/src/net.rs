//! Packets and commands to a network device on a real tap, in a network namespace of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::sync::{LazyLock, Mutex};

use pindah_vmm::devices::virtio::net::{Net, NetHandle, open};
use pindah_vmm_api::{NetConfig, VhostMode};

use crate::driver::{Buffer, DATA, Driver, buffers};
use crate::input::Input;
use crate::machine::{self, QUEUE_SIZE, Virtio};

const TAP: &str = "fuzz0";
/// For local experiments (IEEE 802).
const ETHER_TYPE: u16 = 0x88b5;
const HEADER_BYTES: u32 = 12;
const TRANSMIT: u16 = 1;
const CONTROL: usize = 4;

struct Fixture {
    device: Virtio,
    handle: NetHandle,
    wire: File,
}

static FIXTURE: LazyLock<Result<Mutex<Fixture>, String>> = LazyLock::new(|| {
    // Only a thread that ends at once changes its namespace; the descriptors keep it alive.
    let thread = std::thread::spawn(Fixture::new);
    thread.join().expect("no panic").map(Mutex::new)
});

impl Fixture {
    fn new() -> Result<Self, String> {
        // SAFETY: takes no pointers; only this thread changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = io::Error::last_os_error();
            return Err(format!("no network namespace: {error}"));
        }
        let config = NetConfig {
            id: None,
            tap: TAP.to_owned(),
            mac: None,
            queue_pairs: 2,
            queue_size: QUEUE_SIZE,
            vhost: VhostMode::Off,
        };
        let resources = open(&config, "net0", "guest").map_err(|error| error.to_string())?;
        let wire = wire().map_err(|error| format!("no packet socket: {error}"))?;
        let (net, handle) = Net::new("net0", resources).map_err(|error| error.to_string())?;
        Ok(Self {
            device: Virtio::new(Box::new(net), &machine::memory()),
            handle,
            wire,
        })
    }
}

/// The other side of the tap.
fn wire() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers. Protocol 0: it only sends.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let wire = unsafe { File::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    // SAFETY: the pointer is to a C string.
    address.sll_ifindex = unsafe { libc::if_nametoindex(c"fuzz0".as_ptr()) } as i32;
    let size = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: pointer and length are those of a valid address.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(wire)
}

/// Whether this host and user can have a tap.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), String> {
    FIXTURE.as_ref().map(|_| ()).map_err(Clone::clone)
}

/// Runs one case; nothing happens without a tap.
pub fn run(data: &[u8]) {
    let Ok(fixture) = &*FIXTURE else { return };
    let fixture = fixture.lock().expect("a failed case ends the process");
    let input = &mut Input::new(data);
    let mut driver = Driver::new(&fixture.device);
    driver.reset();
    machine::fill(&fixture.device.memory, 0);
    for _ in 0..input.below(8) {
        push(&mut driver, input);
    }
    driver.start(input);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.below(16) {
            0..=7 => push(&mut driver, input),
            8..=10 => driver.kick(input.below(6) as u64),
            11 | 12 => {
                // Lost where the tap's queue is full, as on any wire.
                let _ = (&fixture.wire).write(&frame(input));
            }
            13 => {
                let set = fixture.handle.set_link(input.chance(2));
                set.expect("the tap follows the link");
            }
            14 => {
                fixture.handle.announce();
            }
            _ => driver.disturb(input),
        }
    }
    let set = fixture.handle.set_link(true);
    set.expect("the tap follows the link");
    fixture.device.transport.pause();
    let saved = fixture.device.transport.save();
    saved.expect("a paused device can be saved");
    fixture.device.transport.resume();
    let packet = Buffer {
        address: DATA,
        len: HEADER_BYTES + 60,
        writable: false,
    };
    let content = [0; HEADER_BYTES as usize + 60];
    assert_eq!(driver.assert_works(TRANSMIT, &[(packet, &content)]), 0);
}

fn frame(input: &mut Input) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend(ETHER_TYPE.to_be_bytes());
    frame.resize(14 + input.below(1500), 0x5a);
    frame
}

fn push(driver: &mut Driver, input: &mut Input) {
    match input.below(8) {
        0..=2 => receive(driver, input),
        3..=5 => transmit(driver, input),
        6 => command(driver, input),
        _ => {
            let buffers = buffers(input, 5);
            let queue = input.below(6);
            driver.push(input, queue, &buffers);
        }
    }
}

fn receive(driver: &mut Driver, input: &mut Input) {
    let mut buffers = buffers(input, 3);
    for buffer in &mut buffers {
        buffer.writable = true;
        buffer.len = buffer.len.max(HEADER_BYTES);
    }
    let queue = 2 * input.below(2);
    driver.push(input, queue, &buffers);
}

/// A header of which some fields are set, and a frame.
fn transmit(driver: &mut Driver, input: &mut Input) {
    let address = DATA + input.below(0x1_0000) as u64;
    let mut header = [0; HEADER_BYTES as usize];
    if input.chance(2) {
        header[0] = input.byte() & 3;
        header[1] = input.pick(&[0, 1, 4, 5, 0x81, 0xff]);
        for field in header[2..].chunks_exact_mut(2) {
            field.copy_from_slice(&(input.edge() as u16 & 0x7ff).to_le_bytes());
        }
    }
    driver.poke(address, &header);
    let content = input.bytes(32);
    driver.poke(address + u64::from(HEADER_BYTES), &content);
    let frame = Buffer {
        address,
        len: HEADER_BYTES + input.below(0x800) as u32,
        writable: false,
    };
    let queue = 1 + 2 * input.below(2);
    driver.push(input, queue, &[frame]);
}

/// A control command (virtio 1.2, section 5.1.6.5).
fn command(driver: &mut Driver, input: &mut Input) {
    let address = DATA + input.below(0x1_0000) as u64;
    let class = [input.below(6) as u8, input.below(3) as u8];
    driver.poke(address, &class);
    driver.poke(address + 2, &input.bytes(8));
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let len = input.pick(&[2, 8, 6, 0, 12]);
    let chain = [
        part(address, 2, false),
        part(address + 2, len, false),
        part(address + 0x100, 1, true),
    ];
    driver.push(input, CONTROL, &chain);
}
