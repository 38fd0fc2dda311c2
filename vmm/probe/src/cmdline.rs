//! The command line: `key=value` words, each known, each with its unit in the name.

use core::fmt;

use crate::content::Content;
use crate::options::{BlkOp, Exit, ExitKind, NetOp, Options, RATE_MAX};

/// Why a word was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordError<'a> {
    /// No such key.
    Unknown(&'a str),
    /// The key is known, its value is not one that it takes.
    Bad(&'a str, &'static str),
}

impl fmt::Display for WordError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown word {word}"),
            Self::Bad(word, wanted) => write!(f, "bad value in {word}: want {wanted}"),
        }
    }
}

/// Words for Linux that VMMs and scripts add by themselves; they change nothing here.
const IGNORED: [&str; 13] = [
    "console",
    "reboot",
    "panic",
    "pci",
    "root",
    "ro",
    "rw",
    "quiet",
    "acpi",
    "nomodule",
    "earlycon",
    "earlyprintk",
    "init",
];

impl Options {
    /// Takes the whole command line.
    ///
    /// # Errors
    /// The first word that is unknown or has a bad value.
    pub fn parse(line: &str) -> Result<Self, WordError<'_>> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            options.apply(word)?;
        }
        Ok(options)
    }

    /// Takes one `key=value` word.
    ///
    /// # Errors
    /// [`WordError`] if it is unknown or has a bad value; nothing has changed then.
    pub fn apply<'a>(&mut self, word: &'a str) -> Result<(), WordError<'a>> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let bad = |wanted| WordError::Bad(word, wanted);
        let number = |from: u64, to: u64, wanted| {
            parse_number(value)
                .filter(|n| (from..=to).contains(n))
                .ok_or(bad(wanted))
        };
        let port = || number(0, 0xffff, "a port: 0 to 0xffff").map(|n| n as u16);
        let switch = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(bad("0 or 1")),
        };
        match key {
            "ws_mib" => self.ws_mib = number(0, 1 << 20, "MiB: 0 to 1048576")?,
            "rate_mib_s" if value == "max" => self.rate_mib_s = RATE_MAX,
            "rate_mib_s" => self.rate_mib_s = number(0, 1 << 20, "max, or MiB/s: 0 to 1048576")?,
            "content" => {
                self.content = Content::parse(value).ok_or(bad("counter, text or random"))?;
            }
            "rewrite" => self.rewrite = switch()?,
            "verify" => self.verify = switch()?,
            "verify_mib_s" => self.verify_mib_s = number(1, 1 << 20, "MiB/s: 1 to 1048576")?,
            "beat_ms" => self.beat_ms = number(1, 3_600_000, "ms: 1 to 3600000")?,
            "tick_us" => self.tick_us = number(100, 1_000_000, "us: 100 to 1000000")?,
            "gap_us" => self.gap_us = number(1, 3_600_000_000, "us: 1 to 3600000000")?,
            "spin" => self.spin = switch()?,
            "cpus" => self.cpus = number(1, 64, "1 to 64")?,
            "exit_after_ms" => self.exit_after_ms = number(0, 1 << 40, "ms")?,
            "exit_by" => {
                self.exit_by = parse_exit(value).ok_or(bad("reset, poweroff or crash"))?;
            }
            "pm1a" => self.pm1a = port()?,
            "sleep_control" => self.sleep_control = port()?,
            "s5_typ" => self.s5_typ = number(0, 7, "0 to 7")? as u16,
            "runner_port" => self.runner_port = port()?,
            "echo" => self.echo = switch()?,
            "blk" => self.blk = switch()?,
            "blk_dev" => self.blk_dev = number(0, 31, "0 to 31")?,
            "blk_op" => {
                self.blk_op = parse_blk_op(value)
                    .ok_or(bad("randread, randwrite, seqread, seqwrite or verify"))?;
            }
            "blk_bs" => {
                self.blk_bs = number(512, 1 << 20, "a power of two from 512 to 1m")?;
                if !self.blk_bs.is_power_of_two() {
                    return Err(bad("a power of two from 512 to 1m"));
                }
            }
            "blk_qd" => self.blk_qd = number(1, 64, "1 to 64")?,
            "blk_s" => self.blk_s = number(0, 1 << 30, "seconds; 0 for ever")?,
            "blk_span_mib" => self.blk_span_mib = number(0, 1 << 30, "MiB; 0 for the whole disk")?,
            "blk_iops" => self.blk_iops = number(0, 1 << 30, "a second; 0 for no limit")?,
            "net" => self.net = switch()?,
            "net_op" => {
                self.net_op = parse_net_op(value).ok_or(bad("answer, tx, rx, echo or ping"))?;
            }
            "net_size" => self.net_size = number(60, 1514, "bytes: 60 to 1514")?,
            "net_qd" => self.net_qd = number(1, 128, "1 to 128")?,
            "net_s" => self.net_s = number(0, 1 << 30, "seconds; 0 for ever")?,
            "ip" => self.ip = parse_ip(value).ok_or(bad("an IPv4 address"))?,
            "peer" => self.peer = parse_ip(value).ok_or(bad("an IPv4 address"))?,
            "exits" => {
                self.exits = Some(parse_exit_kind(value).ok_or(bad("pio, mmio or notify"))?);
            }
            "exits_s" => self.exits_s = number(1, 1 << 20, "seconds")?,
            "exits_port" => self.exits_port = port()?,
            "exits_addr" => self.exits_addr = number(0, u64::MAX, "an address")?,
            "virtio_mmio.device" => {
                let address = parse_mmio_device(value).ok_or(bad("SIZE@ADDRESS:IRQ"))?;
                let slot = self
                    .mmio_devices
                    .get_mut(self.mmio_count)
                    .ok_or(bad("at most 32 devices"))?;
                *slot = address;
                self.mmio_count += 1;
            }
            _ if IGNORED.contains(&key) || key.starts_with("i8042.") => {}
            _ => return Err(WordError::Unknown(word)),
        }
        Ok(())
    }
}

/// A decimal or 0x number, with k, m or g for powers of 1024.
fn parse_number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

fn parse_exit(text: &str) -> Option<Exit> {
    [
        ("reset", Exit::Reset),
        ("poweroff", Exit::Poweroff),
        ("crash", Exit::Crash),
    ]
    .into_iter()
    .find_map(|(name, exit)| (name == text).then_some(exit))
}

fn parse_blk_op(text: &str) -> Option<BlkOp> {
    use BlkOp::{RandRead, RandWrite, SeqRead, SeqWrite, Verify};
    [RandRead, RandWrite, SeqRead, SeqWrite, Verify]
        .into_iter()
        .find(|op| op.name() == text)
}

fn parse_net_op(text: &str) -> Option<NetOp> {
    use NetOp::{Answer, Echo, Ping, Rx, Tx};
    [Answer, Tx, Rx, Echo, Ping]
        .into_iter()
        .find(|op| op.name() == text)
}

fn parse_exit_kind(text: &str) -> Option<ExitKind> {
    use ExitKind::{Mmio, Notify, Pio};
    [Pio, Mmio, Notify]
        .into_iter()
        .find(|kind| kind.name() == text)
}

fn parse_ip(text: &str) -> Option<[u8; 4]> {
    let mut parts = text.split('.');
    let mut address = [0; 4];
    for byte in &mut address {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(address)
}

/// `SIZE@ADDRESS:IRQ[:ID]`, as Linux takes it.
fn parse_mmio_device(text: &str) -> Option<u64> {
    let (size, rest) = text.split_once('@')?;
    parse_number(size)?;
    let (address, irq) = rest.split_once(':')?;
    irq.split(':')
        .all(|n| n.parse::<u32>().is_ok())
        .then_some(())?;
    parse_number(address)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::content::Noise;
    use std::{format, string::String};

    #[test]
    fn parse_empty_line_gives_defaults() {
        assert_eq!(Options::parse("  "), Ok(Options::default()));
    }

    #[test]
    fn parse_words_sets_each() {
        let line = "ws_mib=64 rate_mib_s=50 content=text verify=1 spin=1 cpus=2 blk=1 \
                    blk_bs=4k blk_op=seqwrite ip=10.9.0.7 net_op=ping exits=notify pm1a=0x404";
        let options = Options::parse(line).unwrap();
        assert_eq!((options.ws_mib, options.rate_mib_s), (64, 50));
        assert_eq!(options.content, Content::Text);
        assert!(options.verify && options.spin && options.blk);
        assert_eq!((options.cpus, options.blk_bs), (2, 4096));
        assert_eq!(options.blk_op, BlkOp::SeqWrite);
        assert_eq!(options.ip, [10, 9, 0, 7]);
        assert_eq!(options.net_op, NetOp::Ping);
        assert_eq!(options.exits, Some(ExitKind::Notify));
        assert_eq!(options.pm1a, 0x404);
    }

    #[test]
    fn parse_rate_max_is_unbounded() {
        assert_eq!(
            Options::parse("rate_mib_s=max").unwrap().rate_mib_s,
            RATE_MAX
        );
    }

    #[test]
    fn parse_unknown_word_names_it() {
        assert_eq!(
            Options::parse("ws_mib=1 wsmib=2"),
            Err(WordError::Unknown("wsmib=2"))
        );
    }

    #[test]
    fn parse_bad_value_names_the_word() {
        for word in [
            "ws_mib=x",
            "ws_mib=",
            "cpus=0",
            "cpus=65",
            "verify=2",
            "blk_bs=3000",
            "ip=1.2.3",
            "ip=1.2.3.4.5",
            "rate_mib_s=-1",
            "exits=",
            "virtio_mmio.device=4K@0xd0000000",
        ] {
            match Options::parse(word) {
                Err(WordError::Bad(named, _)) => assert_eq!(named, word),
                other => panic!("{word}: {other:?}"),
            }
        }
    }

    #[test]
    fn parse_linux_words_of_vmms_are_taken_or_ignored() {
        let line = "console=ttyS0 reboot=k panic=1 pci=off root=/dev/vda rw i8042.noaux \
                    virtio_mmio.device=512@0xfeb00000:5 virtio_mmio.device=4K@0xd0001000:6:1";
        let options = Options::parse(line).unwrap();
        assert_eq!(
            options.mmio_devices[..options.mmio_count],
            [0xfeb0_0000, 0xd000_1000]
        );
    }
    #[test]
    fn parse_noise_never_panics() {
        let keys = ["ws_mib=", "ip=", "virtio_mmio.device=", "blk_bs=", "é", "="];
        let mut noise = Noise::new(1);
        for _ in 0..100_000 {
            let bytes = [noise.next_word(), noise.next_word()].map(u64::to_le_bytes);
            let key = keys[noise.next_word() as usize % keys.len()];
            let text: String = bytes
                .as_flattened()
                .iter()
                .map(|&b| (b & 0x7f) as char)
                .collect();
            let _ = Options::parse(&format!("{key}{text}"));
        }
    }
}
