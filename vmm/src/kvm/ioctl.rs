//! The few KVM calls that `kvm-ioctls` does not have (KVM API documentation, section 4).

use std::os::raw::c_void;

use kvm_bindings::{KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

mod number {
    use super::{KVMIO, ioctl_iowr_nr, kvm_clear_dirty_log};

    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

/// `KVM_CLEAR_DIRTY_LOG`: forgets the pages whose bits are set in `bitmap`.
///
/// `first_page` must be a multiple of 64, and `pages` too unless they end with the memslot.
///
/// # Errors
/// KVM's own; `EINVAL` if `bitmap` is too short for `pages`.
pub fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    bitmap: &[u64],
) -> Result<(), kvm_ioctls::Error> {
    if (bitmap.len() as u64) * 64 < u64::from(pages) {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    let mut request = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast::<c_void>(),
        },
    };
    // SAFETY: the request's type is the call's, and the kernel only reads the bitmap, which is
    // long enough.
    let result = unsafe { ioctl_with_mut_ref(vm, number::KVM_CLEAR_DIRTY_LOG(), &mut request) };
    if result == 0 {
        Ok(())
    } else {
        Err(kvm_ioctls::Error::last())
    }
}
