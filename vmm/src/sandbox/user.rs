//! Becomes somebody else than root, to whom nothing of the host belongs.

use std::io;

use pindah_vmm_api::User;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::SandboxError;

/// Becomes this user for good, without supplementary groups. The calls are the calling thread's:
/// it must be the only one, and have the capabilities for it.
///
/// # Errors
/// [`SandboxError::User`].
pub(super) fn become_user(user: User) -> Result<(), SandboxError> {
    let failed = |source: rustix::io::Errno| SandboxError::User {
        user,
        source: io::Error::from(source),
    };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&[]).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)
}
