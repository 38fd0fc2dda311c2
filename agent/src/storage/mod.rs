//! Pools: where images and guests' disks are kept.
//!
//! A pool of the kind `dir` is a directory with `images/`, which guests' disks are copied from, and
//! `volumes/`, with one directory a guest. Whatever is made is made under another name first and
//! then renamed, so a name means a complete file.

mod dir;
mod error;
mod image;
mod qemu_img;
mod upload;

pub use dir::{DirPool, PoolStatus};
pub use error::StorageError;
pub use image::{Image, ImageFormat};
pub use upload::Upload;
