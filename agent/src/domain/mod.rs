//! What a guest and a task are, and what may be asked of them. Pure: no file, no clock, no store.

mod cidr;
mod cloud_init;
mod edit;
mod firewall;
mod guest;
mod interface;
mod invalid;
mod mac;
mod name;
mod network;
mod network_name;
mod placement;
mod rate;
mod spec;
mod spoof_guard;
mod task;
mod vlan;

pub use cidr::Cidr;
pub use cloud_init::CloudInit;
pub use edit::GuestEdit;
pub use firewall::{Direction, Firewall, FirewallRule, Policy, PortRange, Protocol};
pub use guest::{Autostart, Boot, CrashPolicy, Disk, Guest, NameOwner, Volume, Wanted};
pub use interface::{Interface, InterfaceEdit, InterfaceSpec};
pub use invalid::Invalid;
pub use mac::MacOwner;
pub use name::{FileName, GuestName, is_label};
pub use network::{BondMode, Network, NetworkEdit, NetworkKind, NetworkSpec, Uplink};
pub use network_name::{LinkName, NetworkName};
pub use placement::PlacementError;
pub use rate::RateLimit;
pub(crate) use spec::check_notes;
pub use spec::{DiskSpec, GuestSpec, KernelSpec, Plan};
pub use spoof_guard::SpoofGuard;
pub use task::{Progress, Task, TaskKind, TaskState};
pub use vlan::{Vlan, VlanRange};
