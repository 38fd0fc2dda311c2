//! Pools: where images and guests' disks are kept.
//!
//! A pool of files is a directory with `images/`, which guests' disks are copied from, and `volumes/`, with
//! one directory a guest. Whatever is made is made under another name first and then renamed, so a
//! name means a complete file. Each node has the pool `local` of its own; the others have a record
//! in the store, and each node opens them by itself. In a pool that all nodes share, a guest's
//! volumes are touched by the node that owns the guest only.
//!
//! A pool of block devices is an LVM volume group on an iSCSI LUN, with one logical volume a disk.
//! A pool that is read-only is a directory of images, and has no disks.
//!
//! ```text
//! Pools ── Pool ── gate ── Directory, with its Mark
//!            │       ├──── VolumeGroup, by lvm, with its StoreLock
//!            ├──── NfsMount, by mount.nfs; IscsiTarget, by iscsiadm and multipathd
//!            └──── qemu-img, a process of its own
//! ```
//!
//! Nothing here touches a pool's storage but through its gate, which has the deadlines.

mod activation;
mod block_growth;
mod block_volume;
mod changes;
mod client_id;
mod directory;
mod download;
mod error;
mod gate;
mod image;
mod iscsi;
mod iscsi_mark;
mod iscsiadm;
mod lvm;
mod mark;
mod media;
mod mounts;
mod multipath;
mod nfs;
mod pool;
mod pool_file;
mod pool_look;
mod pool_place;
mod pools;
mod program;
mod qemu_img;
mod status;
mod store_lock;
mod upload;
mod volume;
mod volume_files;
mod volume_group;

pub use download::Download;
pub use error::StorageError;
pub use image::{Image, ImageFormat};
pub use pool::Pool;
pub use pools::{GuestPools, Pools, PoolsConfig};
pub use status::{PoolState, PoolStatus};
pub use upload::Upload;
pub use volume::{Source, VolumeFile, growth_need_mib, volume_need_mib, volume_size_mib};
