//! The probe: a bare-metal guest that lives in ring 3 and measures what its VMM does to it.
//!
//! The image (`target/{debug,release}/pindah-probe`, an ELF at 1 MiB) boots by PVH and by the
//! 64-bit Linux protocol, takes its orders from the command line and from the serial line at port
//! 0x3f8, and answers there with one JSON object a line. This library is its pure logic, tested on
//! any host; `main.rs` is the guest.
//!
//! Ring 0 does no more than enter ring 3 and sleep in `hlt`, since some hosts emulate ring 0
//! instruction by instruction. Everything else, devices too, is driven from ring 3 by polling.
//!
//! # Command line
//! Words of `key=value`. Numbers are decimal or 0x, with `k`, `m`, `g` for powers of 1024; a
//! switch is 0 or 1. An unknown word or a bad value is an `error` line that names it, and a reset.
//! Words that VMMs add for Linux (`console`, `reboot`, `panic`, `pci`, `root`, `ro`, `rw`,
//! `quiet`, `acpi`, `nomodule`, `earlycon`, `earlyprintk`, `init`, `i8042.*`) are ignored.
//!
//! | word | default | what |
//! |---|---|---|
//! | `ws_mib` | 16 | working set, MiB of RAM that is filled at the start |
//! | `rate_mib_s` | 0 | pages dirtied, in MiB/s, evenly and in order; `max`: as fast as can be |
//! | `content` | `counter` | body of a page: `counter` zero, `text` 3:1 under `zstd -1`, `random` |
//! | `rewrite` | 0 | each write makes a new body; 0: only the 16 bytes of its stamp |
//! | `verify` | 0 | pages are compared with what was written, all the time and at the end |
//! | `verify_mib_s` | 64 | how fast |
//! | `cpus` | 1 | vCPUs to start, each with its own share of working set and rate (1 to 64) |
//! | `spin` | 0 | never sleep: gaps are exact to a microsecond |
//! | `tick_us` | 500 | longest sleep otherwise, see `gap` (100 to 1000000; KVM's own minimum is 200) |
//! | `gap_us` | 2000 | gaps from this length on have a line |
//! | `beat_ms` | 100 | period of the heartbeat |
//! | `exit_after_ms` | 0 | end by itself after so long; 0: never |
//! | `exit_by` | `reset` | `reset` (port 0x64, else triple fault), `poweroff` (PM1a), `crash` |
//! | `pm1a`, `s5_typ` | 0x604, 0 | port and SLP_TYP of `poweroff` |
//! | `sleep_control` | 0 | where ACPI is hardware-reduced, the 8-bit port in the place of `pm1a` |
//! | `runner_port` | 0x500 | 32-bit port whose value is each beat's `runner` |
//! | `echo` | 0 | echo serial input |
//! | `blk` | 0 | exercise a virtio disk, from `ready` on |
//! | `blk_dev` | 0 | which of the disks, in the order in which they are found |
//! | `blk_op` | `randread` | `randread`, `randwrite`, `seqread`, `seqwrite`, `verify`; writes destroy |
//! | `blk_bs` | 4096 | bytes a request, a power of two from 512 to 1m (`verify`: from 4k) |
//! | `blk_qd` | 1 | requests in flight, 1 to 64, at most a third of the device's queue |
//! | `blk_iops` | 0 | at most so many a second; 0: no limit |
//! | `blk_s` | 5 | seconds; 0: for ever |
//! | `blk_span_mib` | 0 | only the first MiB of the disk; 0: all of it |
//! | `net` | 0 | take the first virtio card: announce `ip`, answer ARP and ping |
//! | `net_op` | `answer` | besides: `tx` UDP to the peer, `rx`, `echo` UDP, `ping` the peer |
//! | `net_size` | 1514 | bytes of each frame sent, 60 to 1514 |
//! | `net_qd` | 32 | frames in flight, 1 to 128 |
//! | `net_s` | 5 | seconds; 0: for ever |
//! | `ip`, `peer` | 10.0.0.2, 10.0.0.1 | own and other IPv4 address |
//! | `exits` | | count VM exits: `pio`, `mmio`, `notify` (needs a virtio device, and neither `blk` nor `net`) |
//! | `exits_s` | 2 | seconds |
//! | `exits_port` | 0x80 | port that `pio` writes a byte to |
//! | `exits_addr` | | register that `mmio` reads 32 bits of; without it one of the first virtio device |
//! | `virtio_mmio.device` | | `SIZE@ADDRESS:IRQ`, as Linux takes it: a virtio-mmio slot (version 2) |
//!
//! While a `blk`, `net` (but `answer`) or `exits` exercise runs the first vCPU does not sleep. A
//! card that only answers is polled at each tick: for pings below `tick_us` add `spin=1`.
//!
//! # Commands on the serial line
//! `status`, `verify` (the whole working set), `set KEY=VALUE` (`rate_mib_s`, `gap_us`, `spin`,
//! `verify`, `beat_ms`, `exit_by`), `corrupt PAGE` (flips a bit, to see it found), `exit` (as
//! `exit_by` says, after a full verification if `verify=1`), and at once `reset`, `poweroff`,
//! `crash`. Input is looked at every 10 ms.
//!
//! # Lines
//! Each has `t_us`, microseconds of TSC since the start, and `ev`. The entry sends the very first
//! byte, the brace of `start`, before anything else: it marks the guest's first instructions.
//!
//! | `ev` | fields |
//! |---|---|
//! | `start` | `version`, `protocol` (`pvh`, `linux64`), `tsc_khz`, `tsc_from` (`cpuid_40000010`, `cpuid_15`, else `lapic`: measured), `ram_mib`, `cpus`, `ws_mib`, `tick_us`, `setup_us`, `cmdline` |
//! | `ready` | the working set is filled: `pages`, `fill_us`. Gaps count from here on |
//! | `beat` | `seq` (lives in guest memory), `steps`, `pages` (dirtied), `gap_max_us` (since the last beat, of all vCPUs), `gap_max_total_us`, `runner` (null: no such port); with `verify=1` `checked`, `bad` |
//! | `gap` | `cpu`, `start_us`, `len_us`, `slept_us` |
//! | `clock_back` | `cpu`, `back_us`: the TSC went back |
//! | `bad_page` | `cpu`, `gpa`, `page`, `generation`, `expected`, `found`; the page is made right again |
//! | `verify` | a full verification is done: `number`, `pages`, `checked_total`, `bad_total` |
//! | `blk` | each second and with `done` at the end: `op`, `bs`, `qd`, `ios`, `iops`, `mib_s`, `p50_us`, `p99_us`, `max_us`, `errors`, `bad`; all since the exercise began |
//! | `bad_block` | `offset` (bytes on the disk), `generation`, `expected`, `found` |
//! | `net` | as `blk`: `op`, `size`, `peer_found`, `tx`, `rx`, `answered`, `lost`, `packets_s` and `mib_s` (of the busier direction), `p50_us`, `p99_us`, `max_us` (of pings) |
//! | `exits` | `kind`, `count`, `exits_s`, `p50_us`, `p99_us`, `max_us` |
//! | `command`, `status` | what was understood, the settings and totals |
//! | `error` | `message` |
//! | `end` | the last line before the end: `bad_total` |
//!
//! A line is sent a few bytes a step, so in a live migration its first part may come out of the
//! source and the rest out of the destination: whoever reads joins the two streams.
//! `rate_mib_s` of `status` is -1 for `max`.
//!
//! # Blackout
//! A gap is the time between two steps of a vCPU. With `spin=1` it is the blackout. A vCPU that
//! sleeps would have come back within one tick anyway, so a blackout that hit it asleep
//! (`slept_us` > 0) lasted between `len_us - slept_us` and `len_us`; half a tick less than `len_us`
//! is right to half a tick. Steps are bounded: 16 pages, 8 serial bytes, some hundred microseconds
//! where each byte is a slow exit, so nothing that the probe does itself looks like a blackout.
#![no_std]

pub mod cmdline;
pub mod command;
pub mod content;
pub mod frame;
pub mod gap;
pub mod histogram;
pub mod json;
pub mod options;
pub mod pace;
