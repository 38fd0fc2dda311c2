//! Request numbers of the `ioctl`s that filters let through, computed as the kernel's headers do
//! (asm-generic/ioctl.h, linux/kvm.h, linux/vhost.h, linux/if_tun.h, linux/fs.h).

/// Nothing is transferred.
const NONE: u32 = 0;
/// The kernel reads.
const WRITE: u32 = 1;
/// The kernel writes.
const READ: u32 = 2;

/// Direction, type, number, size of the argument.
const fn request(direction: u32, kind: u32, number: u32, size: usize) -> u32 {
    assert!(size < 1 << 14);
    direction << 30 | (size as u32) << 16 | kind << 8 | number
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $direction:expr, $kind:expr, $number:expr $(, $argument:ty)?;)+) => {
        $(
            $(#[$doc])*
            pub(in crate::sandbox) const $name: u32 =
                request($direction, $kind, $number, 0 $(+ size_of::<$argument>())?);
        )+
    };
}

/// linux/kvm.h.
pub(super) mod kvm {
    use kvm_bindings::{
        KVMIO, kvm_clear_dirty_log, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_dirty_log,
        kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip, kvm_irqfd, kvm_lapic_state,
        kvm_mp_state, kvm_msi, kvm_msrs, kvm_pit_state2, kvm_regs, kvm_sregs,
        kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
    };

    use super::{NONE, READ, WRITE, request};

    requests! {
        GET_DIRTY_LOG = WRITE, KVMIO, 0x42, kvm_dirty_log;
        SET_USER_MEMORY_REGION = WRITE, KVMIO, 0x46, kvm_userspace_memory_region;
        IRQ_LINE = WRITE, KVMIO, 0x61, kvm_irq_level;
        GET_IRQCHIP = READ | WRITE, KVMIO, 0x62, kvm_irqchip;
        /// The header has the direction wrong, and so it stays.
        SET_IRQCHIP = READ, KVMIO, 0x63, kvm_irqchip;
        SET_GSI_ROUTING = WRITE, KVMIO, 0x6a, kvm_irq_routing;
        IRQFD = WRITE, KVMIO, 0x76, kvm_irqfd;
        IOEVENTFD = WRITE, KVMIO, 0x79, kvm_ioeventfd;
        SET_CLOCK = WRITE, KVMIO, 0x7b, kvm_clock_data;
        GET_CLOCK = READ, KVMIO, 0x7c, kvm_clock_data;
        GET_PIT2 = READ, KVMIO, 0x9f, kvm_pit_state2;
        SET_PIT2 = WRITE, KVMIO, 0xa0, kvm_pit_state2;
        SIGNAL_MSI = WRITE, KVMIO, 0xa5, kvm_msi;
        CLEAR_DIRTY_LOG = READ | WRITE, KVMIO, 0xc0, kvm_clear_dirty_log;
        RUN = NONE, KVMIO, 0x80;
        GET_REGS = READ, KVMIO, 0x81, kvm_regs;
        SET_REGS = WRITE, KVMIO, 0x82, kvm_regs;
        GET_SREGS = READ, KVMIO, 0x83, kvm_sregs;
        SET_SREGS = WRITE, KVMIO, 0x84, kvm_sregs;
        GET_MSRS = READ | WRITE, KVMIO, 0x88, kvm_msrs;
        SET_MSRS = WRITE, KVMIO, 0x89, kvm_msrs;
        GET_LAPIC = READ, KVMIO, 0x8e, kvm_lapic_state;
        SET_LAPIC = WRITE, KVMIO, 0x8f, kvm_lapic_state;
        SET_CPUID2 = WRITE, KVMIO, 0x90, kvm_cpuid2;
        GET_CPUID2 = READ | WRITE, KVMIO, 0x91, kvm_cpuid2;
        GET_MP_STATE = READ, KVMIO, 0x98, kvm_mp_state;
        SET_MP_STATE = WRITE, KVMIO, 0x99, kvm_mp_state;
        GET_VCPU_EVENTS = READ, KVMIO, 0x9f, kvm_vcpu_events;
        SET_VCPU_EVENTS = WRITE, KVMIO, 0xa0, kvm_vcpu_events;
        GET_DEBUGREGS = READ, KVMIO, 0xa1, kvm_debugregs;
        SET_DEBUGREGS = WRITE, KVMIO, 0xa2, kvm_debugregs;
        SET_TSC_KHZ = NONE, KVMIO, 0xa2;
        GET_TSC_KHZ = NONE, KVMIO, 0xa3;
        SET_XSAVE = WRITE, KVMIO, 0xa5, kvm_xsave;
        GET_XSAVE2 = READ, KVMIO, 0xcf, kvm_xsave;
        GET_XCRS = READ, KVMIO, 0xa6, kvm_xcrs;
        SET_XCRS = WRITE, KVMIO, 0xa7, kvm_xcrs;
        KVMCLOCK_CTRL = NONE, KVMIO, 0xad;
    }
}

/// linux/if_tun.h.
pub(super) mod tun {
    use super::{READ, WRITE, request};

    const TUN: u32 = b'T' as u32;

    requests! {
        SETOFFLOAD = WRITE, TUN, 208, u32;
        GETIFF = READ, TUN, 210, u32;
        SETQUEUE = WRITE, TUN, 217, i32;
        SETCARRIER = WRITE, TUN, 226, i32;
    }
}

/// linux/vhost.h.
pub(super) mod vhost {
    use super::{NONE, READ, WRITE, request};

    const VHOST: u32 = 0xaf;

    /// `struct vhost_vring_state`, `struct vhost_vring_file`.
    type IndexAndValue = [u32; 2];
    /// `struct vhost_vring_addr`.
    type RingAddresses = [u64; 5];

    requests! {
        GET_FEATURES = READ, VHOST, 0x00, u64;
        SET_FEATURES = WRITE, VHOST, 0x00, u64;
        SET_OWNER = NONE, VHOST, 0x01;
        RESET_OWNER = NONE, VHOST, 0x02;
        /// `struct vhost_memory` without its regions.
        SET_MEM_TABLE = WRITE, VHOST, 0x03, u64;
        SET_LOG_BASE = WRITE, VHOST, 0x04, u64;
        SET_LOG_FD = WRITE, VHOST, 0x07, i32;
        SET_VRING_NUM = WRITE, VHOST, 0x10, IndexAndValue;
        SET_VRING_ADDR = WRITE, VHOST, 0x11, RingAddresses;
        SET_VRING_BASE = WRITE, VHOST, 0x12, IndexAndValue;
        GET_VRING_BASE = READ | WRITE, VHOST, 0x12, IndexAndValue;
        SET_VRING_KICK = WRITE, VHOST, 0x20, IndexAndValue;
        SET_VRING_CALL = WRITE, VHOST, 0x21, IndexAndValue;
        SET_VRING_ERR = WRITE, VHOST, 0x22, IndexAndValue;
        NET_SET_BACKEND = WRITE, VHOST, 0x30, IndexAndValue;
    }
}

/// linux/userfaultfd.h.
pub(super) mod userfaultfd {
    use super::{READ, WRITE, request};

    const UFFDIO: u32 = 0xaa;

    /// `struct uffdio_range`.
    type Range = [u64; 2];
    /// `struct uffdio_register`, `struct uffdio_zeropage`.
    type RangeAndMore = [u64; 4];
    /// `struct uffdio_copy`.
    type Copy = [u64; 5];

    requests! {
        REGISTER = READ | WRITE, UFFDIO, 0x00, RangeAndMore;
        UNREGISTER = READ, UFFDIO, 0x01, Range;
        WAKE = READ, UFFDIO, 0x02, Range;
        COPY = READ | WRITE, UFFDIO, 0x03, Copy;
        ZEROPAGE = READ | WRITE, UFFDIO, 0x04, RangeAndMore;
    }
}

/// asm-generic/ioctls.h, linux/fs.h: older than the scheme, or known to libc.
pub(super) mod old {
    pub(in crate::sandbox) const FIONBIO: u32 = libc::FIONBIO as u32;
    pub(in crate::sandbox) const TCGETS: u32 = libc::TCGETS as u32;
    pub(in crate::sandbox) const TCSETS: u32 = libc::TCSETS as u32;
    pub(in crate::sandbox) const TIOCGWINSZ: u32 = libc::TIOCGWINSZ as u32;
    pub(in crate::sandbox) const BLKSSZGET: u32 = libc::BLKSSZGET as u32;
    /// `_IOR(0x12, 114, size_t)`.
    pub(in crate::sandbox) const BLKGETSIZE64: u32 = super::request(super::READ, 0x12, 114, 8);
}

#[cfg(test)]
mod tests {
    use ::vhost::vhost_kern::vhost_binding;

    use super::*;

    #[test]
    fn tun_requests_are_those_of_libc() {
        for (ours, theirs) in [
            (tun::SETOFFLOAD, libc::TUNSETOFFLOAD),
            (tun::GETIFF, libc::TUNGETIFF),
            (tun::SETQUEUE, libc::TUNSETQUEUE),
            (tun::SETCARRIER, libc::TUNSETCARRIER),
        ] {
            assert_eq!(u64::from(ours), theirs);
        }
    }

    #[test]
    fn vhost_requests_are_those_of_the_binding() {
        for (ours, theirs) in [
            (vhost::GET_FEATURES, vhost_binding::VHOST_GET_FEATURES()),
            (vhost::SET_FEATURES, vhost_binding::VHOST_SET_FEATURES()),
            (vhost::SET_OWNER, vhost_binding::VHOST_SET_OWNER()),
            (vhost::RESET_OWNER, vhost_binding::VHOST_RESET_OWNER()),
            (vhost::SET_MEM_TABLE, vhost_binding::VHOST_SET_MEM_TABLE()),
            (vhost::SET_LOG_BASE, vhost_binding::VHOST_SET_LOG_BASE()),
            (vhost::SET_LOG_FD, vhost_binding::VHOST_SET_LOG_FD()),
            (vhost::SET_VRING_NUM, vhost_binding::VHOST_SET_VRING_NUM()),
            (vhost::SET_VRING_ADDR, vhost_binding::VHOST_SET_VRING_ADDR()),
            (vhost::SET_VRING_BASE, vhost_binding::VHOST_SET_VRING_BASE()),
            (vhost::GET_VRING_BASE, vhost_binding::VHOST_GET_VRING_BASE()),
            (vhost::SET_VRING_KICK, vhost_binding::VHOST_SET_VRING_KICK()),
            (vhost::SET_VRING_CALL, vhost_binding::VHOST_SET_VRING_CALL()),
            (vhost::SET_VRING_ERR, vhost_binding::VHOST_SET_VRING_ERR()),
            (
                vhost::NET_SET_BACKEND,
                vhost_binding::VHOST_NET_SET_BACKEND(),
            ),
        ] {
            assert_eq!(u64::from(ours), theirs);
        }
    }

    #[test]
    fn userfaultfd_requests_are_those_that_are_made() {
        let ours = [
            userfaultfd::REGISTER,
            userfaultfd::UNREGISTER,
            userfaultfd::WAKE,
            userfaultfd::COPY,
            userfaultfd::ZEROPAGE,
        ];
        let made = crate::memory::userfault::REQUESTS.map(|number| number());
        assert_eq!(ours.map(libc::c_ulong::from), made);
    }

    #[test]
    fn kvm_requests_of_three_directions_are_as_documented() {
        // As `strace -X raw` shows them for the calls of kvm-ioctls.
        assert_eq!(kvm::RUN, 0xae80);
        assert_eq!(kvm::SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(kvm::GET_IRQCHIP, 0xc208_ae62);
        assert_eq!(kvm::GET_MSRS, 0xc008_ae88);
        assert_eq!(kvm::GET_REGS, 0x8090_ae81);
    }
}
