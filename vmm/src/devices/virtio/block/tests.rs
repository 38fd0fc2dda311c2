//! The device behind a driver of our own, on real files.

mod rig;

mod broken;
mod faults;
mod limits;
mod migration;
mod model;
mod open;
mod qcow2;
mod queue;
mod raw;
mod tools;
