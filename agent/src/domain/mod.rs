//! What a guest, a pool and a task are, and what may be asked of them. Pure: no file, no clock, no store.

mod advice;
mod balance;
mod cidr;
mod clone;
mod cloud_init;
mod cpu_limits;
mod disk_limits;
mod edit;
mod firewall;
mod fit_disks;
mod forecast;
mod guest;
mod image;
mod interface;
mod invalid;
mod iscsi;
mod last_move;
mod mac;
mod move_progress;
mod name;
mod network;
mod network_name;
mod nfs;
mod placement;
mod pool;
mod pool_spec;
mod rate;
mod spec;
mod spoof_guard;
mod subnet;
mod tally;
mod task;
mod uplink;
mod vlan;

pub use advice::{
    Advice, GuestPlace, GuestUse, NodeLoss, NodeRoom, NodeThen, NodeUse, Resource, SizeAdvice,
    advise,
};
pub use balance::{GuestLoad, LoadPercent, NodeBalance, NodeLoad, Suggestion, balance};
pub use cidr::Cidr;
pub use clone::CloneSpec;
pub use cloud_init::CloudInit;
pub use cpu_limits::CpuLimits;
pub use disk_limits::DiskLimits;
pub use edit::GuestEdit;
pub use firewall::{Direction, Firewall, FirewallRule, Policy, PortRange, Protocol};
pub use forecast::{Forecast, MoveInputs, SpeedSource};
pub use guest::{
    Autostart, Boot, CrashPolicy, Disk, Guest, NameOwner, Volume, Wanted, format_name,
};
pub use image::ImageRef;
pub use interface::{Interface, InterfaceEdit, InterfaceSpec};
pub use invalid::Invalid;
pub(crate) use invalid::within;
pub use last_move::LastMove;
pub use mac::MacOwner;
pub use move_progress::MoveProgress;
pub use name::{FileName, GuestName, is_label};
pub use network::{Network, NetworkEdit, NetworkKind, NetworkSpec};
pub use network_name::{LinkName, NetworkName};
pub use placement::PlacementError;
pub(crate) use pool::{EXTENT_MIB, overlap};
pub use pool::{PoolKind, PoolName, PoolRecord, PoolSource, Secret};
pub use pool_spec::PoolSpec;
pub use rate::RateLimit;
pub(crate) use spec::check_notes;
pub use spec::{DiskSpec, GuestSpec, KernelSpec, Plan};
pub use spoof_guard::SpoofGuard;
pub use subnet::Subnet;
pub use tally::{Figures, Tally};
pub use task::{Progress, Task, TaskKind, TaskState, TaskSubject};
pub use uplink::{BondMode, Uplink};
pub use vlan::{Vlan, VlanRange};
