//! Saved state beside the transport's.

use serde::{Deserialize, Serialize};

use super::features;
use super::mac::MacAddress;
use super::shared::{Commands, Shared};
use crate::state::{Section, StateError};

const KIND: &str = "virtio-net";
const VERSION: u16 = 1;

/// What the driver has set through the control queue, and the link.
#[derive(Serialize, Deserialize)]
struct NetState {
    mac: [u8; 6],
    #[serde(default = "one")]
    queue_pairs: u16,
    #[serde(default)]
    guest_offloads: Option<u64>,
    #[serde(default)]
    announce: bool,
    #[serde(default = "yes")]
    link_up: bool,
}

fn one() -> u16 {
    1
}

fn yes() -> bool {
    true
}

impl Shared {
    pub(super) fn save(&self) -> Result<Section, StateError> {
        let commands = self.commands().clone();
        let state = NetState {
            mac: commands.mac.bytes(),
            queue_pairs: commands.pairs,
            guest_offloads: commands.offloads,
            announce: commands.announce,
            link_up: self.link_setting(),
        };
        Section::new(KIND, &self.id, VERSION, &state)
    }

    pub(super) fn restore(&self, section: &Section, offered: u64) -> Result<(), StateError> {
        let state: NetState = section.parse(VERSION)?;
        let mac = MacAddress::new(state.mac).map_err(|error| section.invalid(error.to_string()))?;
        let pairs = state.queue_pairs;
        if pairs == 0 || usize::from(pairs) > self.taps.len() {
            let there = self.taps.len();
            return Err(section.invalid(format!("{pairs} queue pairs, {there} are there")));
        }
        let known = features::guest_offloads(offered);
        if let Some(offloads) = state.guest_offloads
            && offloads & !known != 0
        {
            let unknown = offloads & !known;
            return Err(section.invalid(format!("guest offloads {unknown:#x} are not there")));
        }
        let commands = Commands {
            mac,
            pairs,
            offloads: state.guest_offloads,
            announce: state.announce,
        };
        self.load(commands, state.link_up);
        Ok(())
    }
}
