//! The processes of guests: started, found again, seen to end.
//!
//! Each VMM is the leader of a session of its own, so that neither the agent's end nor a signal to
//! its group reaches it. What is needed to find it again lies in the guest's directory.

mod direct;
mod find;
mod identity;

pub use direct::{Direct, GuestProcess, Purpose, SpawnError};
pub use find::find_process;
pub use identity::Identity;
