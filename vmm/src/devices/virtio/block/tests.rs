//! The device behind a driver of our own, on real files.

mod rig;

mod raw;
