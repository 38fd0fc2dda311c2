//! What a guest, a pool and a task are, and what may be asked of them. Pure: no file, no clock, no store.

mod cloud_init;
mod edit;
mod guest;
mod image;
mod invalid;
mod mac;
mod name;
mod network;
mod network_name;
mod nfs;
mod placement;
mod pool;
mod spec;
mod task;

pub use cloud_init::CloudInit;
pub use edit::GuestEdit;
pub use guest::{Autostart, Boot, CrashPolicy, Disk, Guest, Interface, NameOwner, Volume, Wanted};
pub use image::ImageRef;
pub use invalid::Invalid;
pub(crate) use invalid::within;
pub use mac::MacOwner;
pub use name::{FileName, GuestName, is_label};
pub use network::{BondMode, Network, NetworkKind, NetworkSpec, Uplink};
pub use network_name::{LinkName, NetworkName};
pub use placement::PlacementError;
pub(crate) use pool::overlap;
pub use pool::{PoolKind, PoolName, PoolRecord, PoolSource, PoolSpec};
pub(crate) use spec::check_notes;
pub use spec::{DiskSpec, GuestSpec, InterfaceSpec, KernelSpec, Plan};
pub use task::{Progress, Task, TaskKind, TaskState};
