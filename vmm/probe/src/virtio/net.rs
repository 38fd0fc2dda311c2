//! The virtio-net exercise: answers ARP and ping, and sends, counts, echoes or pings.

use pindah_probe::frame::{self, FRAME_MAX, Host, Ip, Meaning};
use pindah_probe::histogram::Histogram;
use pindah_probe::options::{NetOp, Options};

use super::queue::{Part, Queue};
use super::{Device, TYPE_NET};
use crate::machine;
use crate::memory::Memory;
use crate::report::Report;
use crate::window::Window;

const FEATURE_MAC: u64 = 1 << 5;
const QUEUE_SIZE: u16 = 256;
/// The device's own header before each frame, without offloads all zero.
const HEADER: usize = 12;
const BUFFER: usize = 2048;
/// Transmit slots kept for answers, beyond those of the exercise.
const ANSWER_SLOTS: usize = 32;
const SLOTS: usize = 128 + ANSWER_SLOTS;
const FRAMES_A_STEP: usize = 64;

/// The exercise and all that it has counted.
pub struct Net {
    device: Device,
    receive: Queue,
    transmit: Queue,
    /// A buffer for each descriptor of the receive queue, then for each transmit slot.
    buffers: u64,
    sending: [bool; SLOTS],
    depth: usize,
    op: NetOp,
    size: usize,
    me: Host,
    peer_ip: Ip,
    peer: Option<Host>,
    next_ask: u64,
    ping: Option<u64>,
    ping_number: u16,
    window: Window,
    seconds: u64,
    counts: Counts,
    latency: Histogram,
    done: bool,
}

#[derive(Default)]
struct Counts {
    sent: u64,
    sent_bytes: u64,
    received: u64,
    received_bytes: u64,
    answered: u64,
    lost: u64,
}

impl Net {
    /// Finds the first card, sets it up and announces its address.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(o: &Options, memory: &mut Memory, report: &Report) -> Result<Self, &'static str> {
        let device = super::find(o, 0, |kind| kind == TYPE_NET)
            .ok_or("net: no virtio 1.x card on PCI or on the named MMIO slots")?;
        let mac = if device.begin(FEATURE_MAC)? & FEATURE_MAC == 0 {
            [0x52, 0x54, 0, 0, 0, o.ip[3]]
        } else {
            core::array::from_fn(|offset| device.config8(offset))
        };
        let receive = device.queue(0, QUEUE_SIZE, memory)?;
        let transmit = device.queue(1, QUEUE_SIZE, memory)?;
        device.ready();
        let buffers = memory.take(((usize::from(receive.size) + SLOTS) * BUFFER) as u64);
        let most = usize::from(transmit.size)
            .checked_sub(ANSWER_SLOTS)
            .filter(|&most| most > 0)
            .ok_or("net: the transmit queue is too small")?;
        let mut net = Self {
            buffers: buffers.ok_or("net: no RAM for buffers")? as u64,
            sending: [false; SLOTS],
            depth: (o.net_qd as usize).min(most),
            op: o.net_op,
            size: o.net_size as usize,
            me: Host { mac, ip: o.ip },
            peer_ip: o.peer,
            peer: None,
            next_ask: 0,
            ping: None,
            ping_number: 0,
            window: Window::new(report.clock, machine::tsc(), o.net_s),
            seconds: o.net_s,
            counts: Counts::default(),
            latency: Histogram::new(),
            done: o.net_op == NetOp::Answer,
            device,
            receive,
            transmit,
        };
        for index in 0..net.receive.size {
            net.give(index);
        }
        net.device.kick(&net.receive);
        let me = net.me;
        net.answer(|frame| frame::arp_request(frame, me, me.ip));
        Ok(net)
    }

    /// Starts the clock: what was before was setting up.
    pub fn start(&mut self, report: &Report) {
        self.window = Window::new(report.clock, machine::tsc(), self.seconds);
        self.counts = Counts::default();
    }

    /// Takes what has come, sends what is due. True if there is more to do at once.
    pub fn step(&mut self, report: &mut Report) -> bool {
        while let Some((slot, _)) = self.transmit.pop() {
            if let Some(sending) = self.sending.get_mut(usize::from(slot)) {
                *sending = false;
            }
        }
        let came = self.take();
        if self.done {
            return came;
        }
        let now = machine::tsc();
        if self.window.over(now) {
            self.done = true;
            self.report(report, now);
            return false;
        }
        match (self.op, self.peer) {
            (NetOp::Tx | NetOp::Ping, None) => self.ask(now, report.clock.cycles(100_000)),
            (NetOp::Tx, Some(peer)) => self.send_datagrams(peer),
            (NetOp::Ping, Some(peer)) => self.ping(peer, now, report.clock.hz),
            _ => {}
        }
        if self.window.line_due(now) {
            self.report(report, now);
        }
        true
    }

    fn take(&mut self) -> bool {
        let mut came = 0;
        while came < FRAMES_A_STEP
            && let Some((index, len)) = self.receive.pop()
        {
            if index < self.receive.size {
                self.look(index, (len as usize).clamp(HEADER, BUFFER) - HEADER);
                self.give(index);
            }
            came += 1;
        }
        if came > 0 {
            self.device.kick(&self.receive);
        }
        came == FRAMES_A_STEP
    }

    fn look(&mut self, index: u16, len: usize) {
        // SAFETY: the device is done with the buffer, and it is given back after this function.
        let frame = unsafe { self.frame(usize::from(index), len) };
        self.counts.received += 1;
        self.counts.received_bytes += len as u64;
        let me = self.me;
        match frame::classify(frame, me) {
            Meaning::ArpRequest => self.copy_answer(frame, |frame| frame::answer_arp(frame, me)),
            Meaning::EchoRequest => self.copy_answer(frame, frame::answer_echo),
            Meaning::Udp if self.op == NetOp::Echo && !self.done => {
                self.copy_answer(frame, frame::answer_udp);
            }
            Meaning::ArpReply(host) if host.ip == self.peer_ip => self.peer = Some(host),
            Meaning::EchoReply(number) if number == self.ping_number => {
                if let Some(started) = self.ping.take() {
                    self.latency.record(machine::tsc().saturating_sub(started));
                }
            }
            _ => {}
        }
    }

    fn copy_answer(&mut self, request: &[u8], turn: impl Fn(&mut [u8])) {
        let len = request.len().min(FRAME_MAX);
        self.counts.answered += 1;
        self.answer(|frame| {
            frame[..len].copy_from_slice(&request[..len]);
            turn(&mut frame[..len]);
            len
        });
    }

    /// Sends one frame through a slot for answers; without a free one it is lost.
    fn answer(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let slots = self.depth..self.depth + ANSWER_SLOTS;
        let Some(slot) = slots.into_iter().find(|&slot| !self.sending[slot]) else {
            return;
        };
        // SAFETY: the slot is free, so the device does not look at its buffer.
        let frame = unsafe { self.frame(self.transmit_buffer(slot), FRAME_MAX) };
        let len = write(frame);
        self.send(slot, len);
        self.device.kick(&self.transmit);
    }

    fn ask(&mut self, now: u64, pause: u64) {
        if now >= self.next_ask {
            self.next_ask = now + pause;
            let (me, ip) = (self.me, self.peer_ip);
            self.answer(|frame| frame::arp_request(frame, me, ip));
        }
    }

    fn send_datagrams(&mut self, peer: Host) {
        let mut any = false;
        for slot in 0..self.depth {
            if !self.sending[slot] {
                // SAFETY: the slot is free, so the device does not look at its buffer.
                let frame = unsafe { self.frame(self.transmit_buffer(slot), self.size) };
                frame::datagram(frame, self.me, peer);
                self.send(slot, self.size);
                any = true;
            }
        }
        if any {
            self.device.kick(&self.transmit);
        }
    }

    fn ping(&mut self, peer: Host, now: u64, patience: u64) {
        match self.ping {
            Some(started) if now.saturating_sub(started) < patience => return,
            Some(_) => self.counts.lost += 1,
            None => {}
        }
        self.ping_number = self.ping_number.wrapping_add(1);
        self.ping = Some(now);
        let (me, size, number) = (self.me, self.size, self.ping_number);
        self.answer(|frame| {
            frame[..size].fill(0);
            frame::echo_request(&mut frame[..size], me, peer, number);
            size
        });
    }

    fn send(&mut self, slot: usize, len: usize) {
        self.counts.sent += 1;
        self.counts.sent_bytes += len as u64;
        self.sending[slot] = true;
        let part = Part {
            address: self.buffer(self.transmit_buffer(slot)),
            len: (HEADER + len) as u32,
            writable: false,
        };
        self.transmit.write_chain(slot as u16, &[part]);
        self.transmit.push(slot as u16);
    }

    fn give(&mut self, index: u16) {
        let part = Part {
            address: self.buffer(usize::from(index)),
            len: BUFFER as u32,
            writable: true,
        };
        self.receive.write_chain(index, &[part]);
        self.receive.push(index);
    }

    fn transmit_buffer(&self, slot: usize) -> usize {
        usize::from(self.receive.size) + slot
    }

    fn buffer(&self, number: usize) -> u64 {
        self.buffers + (number * BUFFER) as u64
    }

    /// A buffer's frame, behind the header.
    ///
    /// # Safety
    /// The device does not use the buffer meanwhile, nor does another reference.
    unsafe fn frame(&self, number: usize, len: usize) -> &'static mut [u8] {
        assert!(len <= BUFFER - HEADER);
        let start = (self.buffer(number) + HEADER as u64) as *mut u8;
        // SAFETY: inside the buffer, which is RAM taken for it; the caller is alone with it.
        unsafe { core::slice::from_raw_parts_mut(start, len) }
    }

    fn report(&self, report: &mut Report, now: u64) {
        let counts = &self.counts;
        let frames = counts.sent.max(counts.received);
        let bytes = counts.sent_bytes.max(counts.received_bytes);
        let line = report
            .line("net")
            .text("op", self.op.name())
            .num("size", self.size)
            .num("done", self.done)
            .num("peer_found", self.peer.is_some())
            .num("tx", counts.sent)
            .num("rx", counts.received)
            .num("answered", counts.answered)
            .num("lost", counts.lost)
            .num("packets_s", self.window.per_second(now, frames))
            .num("mib_s", self.window.mib_per_second(now, bytes));
        self.window.latencies(line, &self.latency).finish();
    }
}
