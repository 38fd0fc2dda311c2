//! Ports for whoever looks into a guest: firmware's debug console, and who runs the guest.

use std::sync::{Mutex, PoisonError};

use crate::bus::BusDevice;

/// What firmware reads to see that somebody listens (QEMU's `isa-debugcon`).
const LISTENING: u8 = 0xe9;
/// Lines longer than this are logged in pieces.
const LINE_MAX: usize = 256;

/// SeaBIOS's and OVMF's debug console: each line becomes a log entry of level `debug`. A port
/// that is not there makes them silent, and much faster.
#[derive(Default)]
pub struct DebugConsole {
    line: Mutex<Vec<u8>>,
}

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = LISTENING;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in data {
            if byte == b'\n' || line.len() == LINE_MAX {
                let text = String::from_utf8_lossy(&line);
                tracing::debug!(target: "firmware", "{}", text.escape_debug());
                line.clear();
            }
            if byte != b'\n' {
                line.push(byte);
            }
        }
    }
}

/// Reads as the VMM's process id, 32 bits: lets a measuring guest say whose figures it has.
pub struct RunnerId;

impl RunnerId {
    /// Ports that the device takes.
    pub const PORTS: u64 = 4;
}

impl BusDevice for RunnerId {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let id = std::process::id().to_le_bytes();
        for (byte, id) in data.iter_mut().zip(&id[offset.min(4) as usize..]) {
            *byte = *id;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runner_id_reads_as_this_process() {
        let mut data = [0; 4];
        RunnerId.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), std::process::id());
        RunnerId.read(3, &mut data[..1]);
        assert_eq!(data[0], (std::process::id() >> 24) as u8);
    }

    #[test]
    fn debug_console_keeps_no_more_than_a_line() {
        let console = DebugConsole::default();
        console.write(0, b"begin\nrest");
        assert_eq!(*console.line.lock().unwrap(), b"rest");
        console.write(0, &[b'x'; 10 * LINE_MAX]);
        assert!(console.line.lock().unwrap().len() <= LINE_MAX);
        let mut data = [0];
        console.read(0, &mut data);
        assert_eq!(data, [LISTENING]);
    }
}
