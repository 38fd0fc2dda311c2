//! The device between a driver and a real tap.

mod driver;
mod hostile;
mod wire;

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use self::driver::{Driver, SIZE, WRITE, until};
use self::wire::{Wire, in_namespace, open_tap, remove};
use super::*;
use crate::devices::virtio::VirtioDevice;

const RX: usize = 0;
const TX: usize = 1;

const MERGEABLE: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 17 | 1 << 15 | 1 << 23 | 1 << 21;
const PLAIN: u64 = 1 << 32;
/// What TSO adds.
const LARGE: u64 = 1 << 1 | 1 << 7 | 1 << 8;

/// Where buffers are, 64 KiB each.
fn buffer(number: u64) -> u64 {
    0x10_0000 + number * 0x1_0000
}

struct Machine {
    net: Net,
    handle: NetHandle,
    driver: Driver,
    wire: Wire,
}

impl Machine {
    fn new(features: u64) -> Self {
        Self::with_pairs(features, 1)
    }

    fn with_pairs(features: u64, pairs: u8) -> Self {
        let resources = open_tap("test0", pairs).unwrap();
        let (net, handle) = Net::new("net0", resources).unwrap();
        assert_eq!(features & !net.features(), 0);
        let queues = 2 * u16::from(pairs) + u16::from(features & (1 << 17) != 0);
        let mut machine = Self {
            net,
            handle,
            driver: Driver::new(features, queues),
            wire: Wire::new("test0"),
        };
        let queues = machine.driver.queues();
        machine.resume(queues);
        machine
    }

    fn resume(&mut self, queues: Vec<(u16, Queue)>) {
        let activation = self.driver.activation(queues);
        self.net.activate(activation).unwrap();
    }

    fn transmit(&mut self, number: u64, frame: &[u8]) {
        self.driver.write(buffer(number), &[0; HEADER_BYTES]);
        self.driver.write(buffer(number) + 12, frame);
        let (header, rest) = (buffer(number), buffer(number) + 12);
        let chain = [(header, 12, 0), (rest, frame.len() as u32, 0)];
        self.driver.rings[TX].add(&chain);
        self.driver.rings[TX].kick();
    }

    fn next_frame(&self) -> Vec<u8> {
        let mut frame = None;
        until("a frame on the wire", || {
            frame = self.wire.receive();
            frame.is_some()
        });
        frame.unwrap()
    }

    fn used(&mut self, ring: usize, count: usize) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        until("used buffers", || {
            used.extend(self.driver.rings[ring].used());
            used.len() >= count
        });
        assert_eq!(used.len(), count);
        used
    }

    /// Sends a command and returns the acknowledgement.
    fn command(&mut self, command: &[u8]) -> u8 {
        self.driver.write(0x800, command);
        self.driver.write(0xa00, &[0xee]);
        let length = command.len() as u32;
        let chain = [(0x800, 2, 0), (0x802, length - 2, 0), (0xa00, 1, WRITE)];
        let ring = self.driver.rings.len() - 1;
        self.driver.rings[ring].add(&chain);
        self.driver.rings[ring].kick();
        self.used(ring, 1);
        self.driver.read(0xa00, 1)[0]
    }

    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        self.net.read_config(0, &mut config);
        config
    }
}

#[test]
fn guest_frames_reach_the_wire_in_order() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE | LARGE);
        for round in 0..200_u64 {
            let frame = Wire::frame(round as u8, 60 + round as usize * 7);
            machine.transmit(round % 32, &frame);
            assert!(machine.next_frame() == frame, "frame {round}");
            let used = machine.used(TX, 1);
            assert_eq!(used[0].1, 0);
        }
        let metrics = machine.handle.metrics();
        assert_eq!((metrics.tx_packets, metrics.tx_dropped), (200, 0));
    });
}

#[test]
fn guest_packets_that_are_no_frames_are_dropped_and_counted() {
    in_namespace(|| {
        let mut machine = Machine::new(PLAIN);
        // Too short, no header, a header that makes no sense, too long.
        machine.transmit(0, &[1; 13]);
        machine.driver.rings[TX].add(&[(buffer(1), 5, 0)]);
        machine.driver.write(buffer(2), &[0xff; 100]);
        machine.driver.rings[TX].add(&[(buffer(2), 100, 0)]);
        machine.driver.rings[TX].add(&[(buffer(3), 200_000, 0)]);
        machine.driver.rings[TX].add(&[(buffer(4), 0, 0)]);
        let frame = Wire::frame(1, 100);
        machine.transmit(8, &frame);
        assert!(machine.next_frame() == frame);
        let metrics = machine.handle.metrics();
        assert_eq!(metrics.tx_packets, 1);
        assert!(metrics.tx_dropped >= 4);
        assert!(!machine.driver.signals.needs_reset.load(Ordering::SeqCst));
    });
}

#[test]
fn wire_frames_reach_the_guest_and_mark_its_pages() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE | LARGE);
        for number in 0..8 {
            machine.driver.rings[RX].add(&[(buffer(number), 2048, WRITE)]);
        }
        machine.driver.rings[RX].kick();
        for seed in 0..8 {
            machine.wire.send(&Wire::frame(seed, 1000));
        }
        let used = machine.used(RX, 8);
        for (seed, (head, length)) in used.into_iter().enumerate() {
            assert_eq!((usize::from(head), length), (seed, 1012));
            let at = buffer(u64::from(head));
            assert_eq!(machine.driver.read(at + 10, 2), [1, 0], "num_buffers");
            assert!(machine.driver.read(at + 12, 1000) == Wire::frame(seed as u8, 1000));
            let region = machine.driver.memory.iter().next().unwrap();
            assert!(region.bitmap().dirty_at(at as usize));
            assert!(!region.bitmap().dirty_at(at as usize + 4096));
        }
        assert!(machine.driver.signals.queues[RX].load(Ordering::SeqCst) > 0);
        let metrics = machine.handle.metrics();
        assert_eq!((metrics.rx_packets, metrics.rx_bytes), (8, 8000));
    });
}

/// Puts a packet together from the buffers that it was spread over.
fn assemble(machine: &Machine, used: &[(u16, u32)], addresses: &[u64]) -> Vec<u8> {
    let parts = used.iter().map(|&(head, length)| {
        let at = addresses[usize::from(head)];
        machine.driver.read(at, length as usize)
    });
    let packet = parts.collect::<Vec<_>>().concat();
    let num_buffers = usize::from(u16::from_le_bytes([packet[10], packet[11]]));
    assert_eq!(num_buffers, used.len());
    packet[12..].to_vec()
}

#[test]
fn large_frame_is_spread_over_mergeable_buffers() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE | LARGE);
        let addresses: Vec<u64> = (0..u64::from(SIZE)).map(buffer).collect();
        for &address in &addresses {
            machine.driver.rings[RX].add(&[(address, 1536, WRITE)]);
        }
        machine.driver.rings[RX].kick();
        let large = Wire::frame(7, 60_000);
        machine.wire.send(&large);
        let small = Wire::frame(8, 64);
        machine.wire.send(&small);
        let used = machine.used(RX, 41);
        assert!(assemble(&machine, &used[..40], &addresses) == large);
        assert!(assemble(&machine, &used[40..], &addresses) == small);
    });
}

#[test]
fn frame_larger_than_what_is_there_waits_for_buffers() {
    in_namespace(|| {
        // Without TSO the device expects ordinary frames, and learns better.
        for features in [MERGEABLE, MERGEABLE | LARGE] {
            let mut machine = Machine::new(features);
            let addresses: Vec<u64> = (0..64).map(buffer).collect();
            for &address in &addresses[..4] {
                machine.driver.rings[RX].add(&[(address, 2048, WRITE)]);
            }
            machine.driver.rings[RX].kick();
            let frames = [Wire::frame(1, 20_000), Wire::frame(2, 300)];
            machine.wire.send(&frames[0]);
            machine.wire.send(&frames[1]);
            for &address in &addresses[4..12] {
                std::thread::sleep(std::time::Duration::from_millis(5));
                machine.driver.rings[RX].add(&[(address, 2048, WRITE)]);
                machine.driver.rings[RX].kick();
            }
            let used = machine.used(RX, 11);
            assert!(assemble(&machine, &used[..10], &addresses) == frames[0]);
            assert!(assemble(&machine, &used[10..], &addresses) == frames[1]);
            assert_eq!(machine.handle.metrics().rx_dropped, 0);
        }
    });
}

#[test]
fn frame_larger_than_a_buffer_is_dropped_without_mergeable_buffers() {
    in_namespace(|| {
        let mut machine = Machine::new(PLAIN);
        for number in 0..4 {
            let at = buffer(number);
            machine.driver.rings[RX].add(&[(at, 12, WRITE), (at + 12, 1514, WRITE)]);
        }
        machine.driver.rings[RX].kick();
        machine.wire.send(&Wire::frame(1, 9000));
        let fits = Wire::frame(2, 1514);
        machine.wire.send(&fits);
        let used = machine.used(RX, 1);
        assert_eq!(used, [(0, 1526)]);
        assert!(machine.driver.read(buffer(0) + 12, 1514) == fits);
        assert_eq!(machine.handle.metrics().rx_dropped, 1);
    });
}

#[test]
fn pause_in_the_middle_of_traffic_loses_nothing() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE | LARGE);
        let mut received = Vec::new();
        let addresses: Vec<u64> = (0..64).map(buffer).collect();
        for &address in &addresses {
            machine.driver.rings[RX].add(&[(address, 1536, WRITE)]);
        }
        machine.driver.rings[RX].kick();
        for round in 0..40_u8 {
            machine.wire.send(&Wire::frame(round, 500));
            if round % 4 == 0 {
                let queues = machine.net.deactivate();
                assert_eq!(queues.len(), 3);
                machine.resume(queues);
            }
        }
        until("all frames", || {
            received.extend(machine.driver.rings[RX].used());
            received.len() == 40
        });
        for (round, (head, _)) in (0_u8..).zip(received) {
            let frame = machine.driver.read(buffer(u64::from(head)) + 12, 500);
            assert!(frame == Wire::frame(round, 500), "frame {round}");
        }
    });
}

#[test]
fn silent_device_moves_nothing_until_it_may() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE);
        let queues = machine.net.deactivate();
        machine.handle.set_silent(true).unwrap();
        machine.resume(queues);
        machine.driver.rings[RX].add(&[(buffer(0), 2048, WRITE)]);
        machine.driver.rings[RX].kick();
        let inward = Wire::frame(1, 100);
        machine.wire.send(&inward);
        let outward = Wire::frame(2, 100);
        machine.transmit(1, &outward);
        // A round trip through the device's thread: whatever it would have done is done.
        assert_eq!(machine.command(&[9, 9, 0]), 1);
        assert_eq!(machine.wire.receive(), None);
        assert!(machine.driver.rings[RX].used().is_empty());
        machine.handle.set_silent(false).unwrap();
        assert!(machine.next_frame() == outward);
        assert_eq!(machine.used(RX, 1), [(0, 112)]);
        let rarp = Wire::frame(3, 60);
        machine.handle.send_frame(&rarp).unwrap();
        assert!(machine.next_frame() == rarp);
    });
}

#[test]
fn link_down_drops_both_directions_and_tells_the_driver() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE);
        assert_eq!(machine.config()[6], 1);
        machine.handle.set_link(false).unwrap();
        assert_eq!(machine.config()[6], 0);
        assert_eq!(machine.driver.signals.config.load(Ordering::SeqCst), 1);
        machine.driver.rings[RX].add(&[(buffer(0), 2048, WRITE)]);
        machine.driver.rings[RX].kick();
        machine.wire.send(&Wire::frame(1, 100));
        machine.transmit(1, &Wire::frame(2, 100));
        machine.used(TX, 1);
        until("drops", || {
            let metrics = machine.handle.metrics();
            metrics.rx_dropped == 1 && metrics.tx_dropped == 1
        });
        machine.handle.set_link(true).unwrap();
        let frame = Wire::frame(3, 100);
        machine.transmit(2, &frame);
        assert!(machine.next_frame() == frame);
        machine.wire.send(&frame);
        assert_eq!(machine.used(RX, 1), [(0, 112)]);
    });
}

#[test]
fn removed_tap_takes_the_link_down_and_the_guest_runs_on() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE);
        machine.driver.rings[RX].add(&[(buffer(0), 2048, WRITE)]);
        machine.driver.rings[RX].kick();
        remove("test0");
        until("link down", || machine.config()[6] == 0);
        assert_eq!(machine.driver.signals.config.load(Ordering::SeqCst), 1);
        machine.transmit(1, &Wire::frame(2, 100));
        machine.used(TX, 1);
        let queues = machine.net.deactivate();
        assert_eq!(queues[0].1.next_avail(), 0);
        machine.resume(queues);
        machine.transmit(2, &Wire::frame(2, 100));
        machine.used(TX, 1);
        assert!(!machine.driver.signals.needs_reset.load(Ordering::SeqCst));
    });
}

#[test]
fn control_commands_do_what_they_say_and_nothing_else() {
    in_namespace(|| {
        let mut machine = Machine::new(MERGEABLE | LARGE | 1 << 2);
        let mac = [0x02, 1, 2, 3, 4, 5];
        assert_eq!(machine.command(&[&[1, 1], &mac[..]].concat()), 0);
        assert_eq!(machine.config()[..6], mac);
        assert_eq!(machine.handle.mac().bytes(), mac);
        // A multicast address, a truncated one, an unknown class, several queues unasked for.
        for bad in [
            &[1, 1, 3, 1, 2, 3, 4, 5][..],
            &[1, 1, 2],
            &[7, 0, 0],
            &[4, 0, 1, 0],
        ] {
            assert_eq!(machine.command(bad), 1);
        }
        assert_eq!(machine.config()[..6], mac);
        // Guest offloads: fewer than negotiated, then more.
        assert_eq!(
            machine.command(&[&[5, 0], &2_u64.to_le_bytes()[..]].concat()),
            0
        );
        let more = 1_u64 << 54;
        assert_eq!(
            machine.command(&[&[5, 0], &more.to_le_bytes()[..]].concat()),
            1
        );
        assert!(machine.handle.announce());
        assert_eq!(machine.config()[6], 3);
        assert_eq!(machine.driver.signals.config.load(Ordering::SeqCst), 1);
        assert_eq!(machine.command(&[3, 0, 0]), 0);
        assert_eq!(machine.config()[6], 1);
        // A new driver starts from what is configured.
        machine.net.deactivate();
        let queues = Driver::new(machine.driver.features, 3).queues();
        machine.resume(queues);
        let derived = MacAddress::derive("guest", "net0").bytes();
        assert_eq!(machine.config()[..6], derived);
    });
}

#[test]
fn several_queue_pairs_are_used_as_the_driver_says() {
    in_namespace(|| {
        let mut machine = Machine::with_pairs(MERGEABLE | 1 << 22, 3);
        assert_eq!(machine.config()[8..10], [3, 0]);
        for pair in 0..3 {
            for number in 0..SIZE {
                let at = buffer(u64::from(number)) + pair * 2048;
                machine.driver.rings[2 * pair as usize].add(&[(at, 2048, WRITE)]);
            }
            machine.driver.rings[2 * pair as usize].kick();
        }
        let mut total = 0;
        for (pairs, ack) in [(0, 1), (4, 1), (3, 0), (1, 0), (2, 0)] {
            assert_eq!(machine.command(&[4, 0, pairs, 0]), ack);
            // Where a frame comes in is the tap's choice, but one does.
            machine.wire.send(&Wire::frame(pairs, 200));
            let mut received = 0;
            until("a frame on any pair", || {
                for pair in 0..3 {
                    received += machine.driver.rings[2 * pair].used().len();
                }
                received > 0
            });
            total += received;
        }
        assert_eq!(total, 5);
        for pair in 0..2_usize {
            let frame = Wire::frame(pair as u8, 300);
            machine.driver.write(buffer(90), &[0; 12]);
            machine.driver.write(buffer(90) + 12, &frame);
            machine.driver.rings[2 * pair + 1].add(&[(buffer(90), 312, 0)]);
            machine.driver.rings[2 * pair + 1].kick();
            assert!(machine.next_frame() == frame);
        }
        let saved = machine.net.deactivate();
        assert_eq!(saved.len(), 7);
    });
}

#[test]
fn queue_without_meaning_is_refused() {
    in_namespace(|| {
        let (mut net, _) = Net::new("net0", open_tap("test0", 2).unwrap()).unwrap();
        // Without MQ, queue 2 is the control queue, and 3 and 4 are nothing.
        let driver = Driver::new(MERGEABLE, 5);
        let refused = net.activate(driver.activation(driver.queues()));
        assert!(matches!(refused, Err(ActivateError::Queues { .. })));
        assert!(net.deactivate().is_empty());
    });
}

#[test]
fn save_restore_save_agrees_and_hostile_state_is_refused() {
    in_namespace(|| {
        let mut machine = Machine::with_pairs(MERGEABLE | LARGE | 1 << 22 | 1 << 2, 2);
        assert_eq!(machine.command(&[4, 0, 2, 0]), 0);
        assert_eq!(machine.command(&[1, 1, 2, 1, 2, 3, 4, 5]), 0);
        assert_eq!(
            machine.command(&[&[5, 0], &2_u64.to_le_bytes()[..]].concat()),
            0
        );
        machine.handle.announce();
        let queues = machine.net.deactivate();
        let saved = machine.net.save().unwrap();
        let (mut other, handle) = Net::new("net0", open_tap("other0", 2).unwrap()).unwrap();
        other.restore(&saved).unwrap();
        assert_eq!(other.save().unwrap(), saved);
        // The driver goes on, with its two pairs.
        other.activate(machine.driver.activation(queues)).unwrap();
        assert_eq!(handle.mac().to_string(), "02:01:02:03:04:05");
        other.deactivate();
        assert_eq!(other.save().unwrap(), saved);
        let (mut small, _) = Net::new("net0", open_tap("small0", 1).unwrap()).unwrap();
        assert!(small.restore(&saved).is_err());
        for (field, value) in [("mac", vec![1_u8; 6]), ("queue_pairs", vec![])] {
            let mut bad = saved.clone();
            let fields = bad.body.as_map_mut().unwrap();
            let entry = fields
                .iter_mut()
                .find(|(name, _)| name.as_text() == Some(field));
            entry.unwrap().1 = ciborium::Value::serialized(&value).unwrap();
            assert!(other.restore(&bad).is_err());
            assert_eq!(other.save().unwrap(), saved);
        }
    });
}

#[test]
fn open_names_what_is_wrong() {
    in_namespace(|| {
        for name in ["", "a/b", "tap%d", "sixteen-bytes-xy", "with space", ".."] {
            assert!(matches!(open_tap(name, 1), Err(OpenNetError::Name { .. })));
        }
        assert!(matches!(open_tap("lo", 1), Err(OpenNetError::Kind { .. })));
        let _open = open_tap("busy0", 1).unwrap();
        assert!(matches!(
            open_tap("busy0", 1),
            Err(OpenNetError::Busy { .. })
        ));
        assert!(matches!(
            open_tap("busy0", 2),
            Err(OpenNetError::Kind { .. })
        ));
        assert!(matches!(
            open_tap("x", 0),
            Err(OpenNetError::QueuePairs { .. })
        ));
        assert!(matches!(
            open_tap("x", 17),
            Err(OpenNetError::QueuePairs { .. })
        ));
        let mut config = wire::config("x", 1);
        config.mac = Some("01:00:00:00:00:00".to_owned());
        assert!(matches!(
            open(&config, "n", "g"),
            Err(OpenNetError::Mac { .. })
        ));
        // A tap for more queues than are wanted will do.
        let status = std::process::Command::new("ip")
            .args(["tuntap", "add", "many0", "mode", "tap", "multi_queue"])
            .status();
        assert!(status.unwrap().success());
        assert_eq!(open_tap("many0", 1).unwrap().taps.len(), 1);
    });
}

#[test]
fn config_reads_at_any_offset_and_width_are_bounded() {
    in_namespace(|| {
        let machine = Machine::new(PLAIN);
        let whole = machine.config();
        for offset in 0..40 {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0xff; width];
                machine.net.read_config(offset, &mut data);
                for (at, byte) in (offset as usize..).zip(data) {
                    assert_eq!(byte, whole.get(at).copied().unwrap_or(0));
                }
            }
        }
        let mut data = [0xff; 4];
        machine.net.read_config(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    });
}
