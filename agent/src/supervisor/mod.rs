//! The processes of guests: started, found again, seen to end.
//!
//! Each VMM is the leader of a session of its own, so that neither the agent's end nor a signal to
//! its group reaches it. What is needed to find it again lies in the guest's directory. Then it is
//! put into a unit or a control group of its guest's: see [`Containment`].
//!
//! The VMM opens what it needs as root and becomes a user of its own before it looks at the guest
//! ([`vmm_user`]).

mod cgroup;
mod containment;
mod direct;
mod find;
mod identity;
mod systemd;
mod user;

pub use containment::{Contained, Containment, ContainmentError, containment};
pub use direct::{Direct, GuestProcess, Purpose, SpawnError};
pub use find::find_process;
pub use identity::Identity;
pub use systemd::host_goes_down;
pub use user::{VmmUserError, vmm_user};
