//! Unmodified Debian guests that move between two servers, with their disks on a NAS.
//!
//! Names that begin with `full_` are for `ci/test --full`. Contention alone makes gaps of half a
//! second here: what a blackout is worth is measured by `ci/bench migrate`.

#[path = "migration/load.rs"]
mod load;
#[path = "migration/moves.rs"]
mod moves;
#[path = "migration/site.rs"]
mod site;
#[path = "migration/unlike.rs"]
mod unlike;
