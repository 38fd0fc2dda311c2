//! The node agent on Debian servers, with Debian guests, as somebody new to it uses it: only
//! `pindahd`, `pindah` and what the guests themselves say.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[path = "agent/first_guest.rs"]
mod first_guest;
#[path = "agent/kernel.rs"]
mod kernel;
#[path = "agent/moves.rs"]
mod moves;
#[path = "agent/nas_pool.rs"]
mod nas_pool;
#[path = "agent/node.rs"]
mod node;
#[path = "agent/office.rs"]
mod office;
#[path = "agent/san_pool.rs"]
mod san_pool;
#[path = "agent/san_portals.rs"]
mod san_portals;
#[path = "agent/site.rs"]
mod site;
#[path = "agent/stall.rs"]
mod stall;
#[path = "agent/unit.rs"]
mod unit;

/// Servers use up the host: one site at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
