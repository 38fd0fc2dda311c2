//! Which system calls each kind of thread needs: one table, in groups by what they are for.
//!
//! A call that is in no group of a thread's kind is forbidden to it. Arguments are checked where
//! a call can do more than the thread has need of; pointers cannot be, since a filter does not
//! see what they point to.

use libc as c;

use super::ThreadKind;
use super::ioctls::{kvm, old, tun, userfaultfd, vhost};

/// A call that is let through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Its number.
    pub syscall: i64,
    /// Under which condition.
    pub test: Test,
}

/// What is asked of one argument, by its position from 0. The kernel takes all of the arguments
/// that are tested here as 32 bits, or has no meaning for the bits above.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    /// Nothing.
    Free,
    /// To be one of these.
    OneOf(u8, &'static [u32]),
    /// To have none of these bits.
    Lacks(u8, u32),
    /// To have all of these bits.
    Has(u8, u32),
    /// To be the first, while another argument is one of the second.
    With(u8, u32, (u8, &'static [u32])),
    /// To be this process.
    OwnProcess(u8),
}

const fn free(syscall: i64) -> Rule {
    Rule {
        syscall,
        test: Test::Free,
    }
}

const fn when(syscall: i64, test: Test) -> Rule {
    Rule { syscall, test }
}

const fn ioctl(requests: &'static [u32]) -> Rule {
    when(c::SYS_ioctl, Test::OneOf(1, requests))
}

const fn fcntl(commands: &'static [u32]) -> Rule {
    when(c::SYS_fcntl, Test::OneOf(1, commands))
}

/// The groups of a kind; what it does most comes first.
pub(super) fn of(kind: ThreadKind) -> &'static [&'static [Rule]] {
    match kind {
        ThreadKind::Control | ThreadKind::Operation => &[
            RUNTIME,
            INTERRUPTS,
            MACHINE,
            DEVICES,
            TIMERS,
            IMAGES,
            IMAGE_LOCKS,
        ],
        ThreadKind::Vcpu => &[VCPU, RUNTIME, INTERRUPTS, DEVICES, TIMERS, IMAGES],
        ThreadKind::Block => &[URING, RUNTIME, POLLING, TIMERS, IMAGES, IMAGE_LOCKS],
        ThreadKind::Net => &[RUNTIME, POLLING, DEVICES, VHOST],
        ThreadKind::Device => &[
            RUNTIME, POLLING, IRQ_LINE, TIMERS, SOCKETS, TERMINALS, BALLOON,
        ],
        ThreadKind::Api => &[RUNTIME, POLLING, EVENTFD, SOCKETS, TCP_QUERIES],
        ThreadKind::Migration => &[
            RUNTIME,
            SOCKETS,
            TCP,
            TCP_QUERIES,
            MACHINE,
            INTERRUPTS,
            DEVICES,
            VHOST,
            TIMERS,
            IMAGES,
            IMAGE_LOCKS,
            PRIORITY,
            HOST_MEMORY,
            FAULTS,
            DISCARDING,
        ],
        ThreadKind::Encoding => &[RUNTIME, PRIORITY],
        ThreadKind::Postcopy => &[RUNTIME, SOCKETS, FAULTS],
    }
}

/// What the language's runtime, the allocator and the C library do on any thread, and the reading
/// and writing of what is open.
const RUNTIME: &[Rule] = &[
    free(c::SYS_read),
    free(c::SYS_write),
    free(c::SYS_readv),
    free(c::SYS_writev),
    free(c::SYS_close),
    fcntl(&[
        c::F_GETFD as u32,
        c::F_GETFL as u32,
        c::F_DUPFD_CLOEXEC as u32,
    ]),
    // Locks and channels.
    free(c::SYS_futex),
    free(c::SYS_sched_yield),
    // The allocator. Nothing becomes executable.
    free(c::SYS_brk),
    when(c::SYS_mmap, Test::Lacks(2, c::PROT_EXEC as u32)),
    when(c::SYS_mprotect, Test::Lacks(2, c::PROT_EXEC as u32)),
    free(c::SYS_munmap),
    free(c::SYS_mremap),
    when(
        c::SYS_madvise,
        Test::OneOf(2, &[c::MADV_DONTNEED as u32, c::MADV_FREE as u32]),
    ),
    // Hash maps take a key on each thread.
    free(c::SYS_getrandom),
    // Time; clocks come here when the host's is not one that user space can read.
    free(c::SYS_clock_gettime),
    free(c::SYS_clock_nanosleep),
    free(c::SYS_nanosleep),
    free(c::SYS_restart_syscall),
    // Waiting for one descriptor.
    free(c::SYS_poll),
    free(c::SYS_ppoll),
    // Signals: handlers, a kick for a vCPU, abort().
    free(c::SYS_rt_sigaction),
    free(c::SYS_rt_sigprocmask),
    free(c::SYS_rt_sigreturn),
    free(c::SYS_sigaltstack),
    when(c::SYS_tgkill, Test::OwnProcess(0)),
    free(c::SYS_getpid),
    free(c::SYS_gettid),
    // The end of a thread and of the process, which gives the terminal back.
    free(c::SYS_exit),
    free(c::SYS_exit_group),
    ioctl(&[old::TCSETS, old::TCGETS]),
];

/// A vCPU and its state.
const VCPU: &[Rule] = &[ioctl(&[
    kvm::RUN,
    kvm::KVMCLOCK_CTRL,
    kvm::GET_REGS,
    kvm::SET_REGS,
    kvm::GET_SREGS,
    kvm::SET_SREGS,
    kvm::GET_MSRS,
    kvm::SET_MSRS,
    kvm::GET_LAPIC,
    kvm::SET_LAPIC,
    kvm::GET_CPUID2,
    kvm::SET_CPUID2,
    kvm::GET_MP_STATE,
    kvm::SET_MP_STATE,
    kvm::GET_VCPU_EVENTS,
    kvm::SET_VCPU_EVENTS,
    kvm::GET_DEBUGREGS,
    kvm::SET_DEBUGREGS,
    kvm::GET_TSC_KHZ,
    kvm::SET_TSC_KHZ,
    kvm::GET_XSAVE2,
    kvm::SET_XSAVE,
    kvm::GET_XCRS,
    kvm::SET_XCRS,
])];

const IRQ_LINE: &[Rule] = &[ioctl(&[kvm::IRQ_LINE])];

/// How devices are wired to the guest: lines, messages, notifications.
const INTERRUPTS: &[Rule] = &[ioctl(&[
    kvm::IRQ_LINE,
    kvm::SIGNAL_MSI,
    kvm::IRQFD,
    kvm::IOEVENTFD,
    kvm::SET_GSI_ROUTING,
])];

/// The machine as a whole: the state of KVM's own devices, its clock, the dirty log.
const MACHINE: &[Rule] = &[ioctl(&[
    kvm::GET_DIRTY_LOG,
    kvm::CLEAR_DIRTY_LOG,
    kvm::SET_USER_MEMORY_REGION,
    kvm::GET_IRQCHIP,
    kvm::SET_IRQCHIP,
    kvm::GET_PIT2,
    kvm::SET_PIT2,
    kvm::GET_CLOCK,
    kvm::SET_CLOCK,
])];

/// What devices do when the driver, a reset or a restore starts and stops them.
const DEVICES: &[Rule] = &[ioctl(&[
    tun::SETOFFLOAD,
    tun::SETQUEUE,
    tun::GETIFF,
    tun::SETCARRIER,
])];

/// Clocks that a driver programs, and the pace of a disk that has limits.
const TIMERS: &[Rule] = &[free(c::SYS_timerfd_settime), free(c::SYS_timerfd_gettime)];

/// Disk images and snapshots, by descriptor. The two calls that could take a path are held to the
/// form that takes a descriptor; a path beside it tells at most whether a file exists.
const IMAGES: &[Rule] = &[
    free(c::SYS_preadv),
    free(c::SYS_pwritev),
    free(c::SYS_pread64),
    free(c::SYS_pwrite64),
    free(c::SYS_lseek),
    free(c::SYS_fsync),
    free(c::SYS_fdatasync),
    free(c::SYS_fallocate),
    free(c::SYS_ftruncate),
    free(c::SYS_fstat),
    free(c::SYS_fstatfs),
    when(c::SYS_newfstatat, Test::Has(3, c::AT_EMPTY_PATH as u32)),
    when(c::SYS_statx, Test::Has(2, c::AT_EMPTY_PATH as u32)),
    ioctl(&[old::BLKSSZGET, old::BLKGETSIZE64]),
];

/// Who may use an image.
const IMAGE_LOCKS: &[Rule] = &[fcntl(&[c::F_OFD_SETLK as u32, c::F_OFD_GETLK as u32])];

/// The rings, which are set up and restricted before any filter.
const URING: &[Rule] = &[free(c::SYS_io_uring_enter)];

/// A loop over descriptors.
const POLLING: &[Rule] = &[
    free(c::SYS_epoll_wait),
    free(c::SYS_epoll_pwait),
    free(c::SYS_epoll_ctl),
];

const EVENTFD: &[Rule] = &[free(c::SYS_eventfd2)];

/// vhost-net.
const VHOST: &[Rule] = &[ioctl(&[
    vhost::GET_FEATURES,
    vhost::SET_FEATURES,
    vhost::SET_OWNER,
    vhost::RESET_OWNER,
    vhost::SET_MEM_TABLE,
    vhost::SET_LOG_BASE,
    vhost::SET_LOG_FD,
    vhost::SET_VRING_NUM,
    vhost::SET_VRING_ADDR,
    vhost::SET_VRING_BASE,
    vhost::GET_VRING_BASE,
    vhost::SET_VRING_KICK,
    vhost::SET_VRING_CALL,
    vhost::SET_VRING_ERR,
    vhost::NET_SET_BACKEND,
])];

/// Clients on sockets that listen already.
const SOCKETS: &[Rule] = &[
    free(c::SYS_accept4),
    free(c::SYS_recvfrom),
    free(c::SYS_recvmsg),
    free(c::SYS_sendto),
    free(c::SYS_sendmsg),
    free(c::SYS_shutdown),
    ioctl(&[old::FIONBIO]),
];

/// What a descriptor that came from a client is.
const TCP_QUERIES: &[Rule] = &[
    when(c::SYS_getsockopt, Test::OneOf(1, &[c::SOL_SOCKET as u32])),
    free(c::SYS_getpeername),
];

/// Options of a migration's connections: no delays, and a pace. And what the kernel knows about
/// their link.
const TCP: &[Rule] = &[
    when(
        c::SYS_setsockopt,
        Test::With(
            1,
            c::IPPROTO_TCP as u32,
            (2, &[c::TCP_NODELAY as u32, c::TCP_NOTSENT_LOWAT as u32]),
        ),
    ),
    when(
        c::SYS_setsockopt,
        Test::With(
            1,
            c::SOL_SOCKET as u32,
            (2, &[c::SO_MAX_PACING_RATE as u32]),
        ),
    ),
    when(
        c::SYS_getsockopt,
        Test::With(1, c::IPPROTO_TCP as u32, (2, &[c::TCP_INFO as u32])),
    ),
];

/// Leaving the processor to guests: this thread's own priority.
const PRIORITY: &[Rule] = &[when(c::SYS_sched_setattr, Test::OneOf(0, &[0]))];

/// How much memory the host has left.
const HOST_MEMORY: &[Rule] = &[free(c::SYS_sysinfo)];

/// Giving guest RAM its pages as they are touched.
const FAULTS: &[Rule] = &[ioctl(&[
    userfaultfd::REGISTER,
    userfaultfd::UNREGISTER,
    userfaultfd::WAKE,
    userfaultfd::COPY,
    userfaultfd::ZEROPAGE,
])];

/// Taking pages of guest RAM away where it lies in a file.
const DISCARDING: &[Rule] = &[when(
    c::SYS_madvise,
    Test::OneOf(2, &[c::MADV_REMOVE as u32]),
)];

/// A terminal on standard input.
const TERMINALS: &[Rule] = &[ioctl(&[old::TIOCGWINSZ])];

/// Giving back guest RAM, whatever backs it.
const BALLOON: &[Rule] = &[
    when(c::SYS_madvise, Test::OneOf(2, &[c::MADV_REMOVE as u32])),
    free(c::SYS_fstatfs),
];
