//! Live migration: a running guest changes machine, and nobody notices.
//!
//! ```text
//!  source                                                     destination
//!  worker ─► source ─┬─ window, convergence (pure)            destination ─► Vm::restore
//!                    ├─ pages::Encoder ─► connection ══TCP══► connection ─► pages::Decoder
//!                    └─ protocol ───────► control    ◄══════► control
//! ```
//!
//! | part | owns |
//! |---|---|
//! | [`protocol`] | the messages, their order, what each may hold |
//! | [`connection`], [`tls`], [`wait`] | sockets, encryption, deadlines and cancelling |
//! | [`pages`] | what becomes of a page on the wire and back |
//! | [`left`] | which pages stay behind where the guest runs before all of them are there |
//! | [`window`] | how much may be on its way, so that the queue on a shared link stays short |
//! | [`priority`] | the processor left to guests until the switchover |
//! | `clocks` | by how much the hosts' wall clocks differ, which the guest's must not follow |
//! | [`cap`] | the most that may be sent, where the request says so |
//! | [`convergence`] | when to stop the guest, and what to do if it writes too fast |
//! | [`source`], [`destination`] | the two sides as sequences of phases |
//! | [`request`] | what a client asks for, checked |
//! | [`worker`], [`jobs`] | the thread that does it |
//! | [`progress`] | how it is going |

mod buffer;
pub mod cap;
mod checksum;
mod clocks;
pub mod connection;
pub mod convergence;
pub mod destination;
pub mod jobs;
mod left;
pub mod pages;
mod pending;
pub mod priority;
pub mod progress;
pub mod protocol;
pub mod request;
pub mod source;
pub mod tls;
pub mod wait;
pub mod window;
pub mod worker;

#[cfg(test)]
mod tests;
