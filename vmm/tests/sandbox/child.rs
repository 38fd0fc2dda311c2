//! The cases, each in a process of its own. A case fails by a panic.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

use pindah_vmm::sandbox::{self, SeccompMode, ThreadKind};
use pindah_vmm_api::User;

/// Written to standard error before the sandbox ends the process.
pub const LAST_WORDS: &str = "last words\n";

/// A system call to try: how tests choose it, and how the kernel calls it.
pub type Call = (&'static str, &'static str);

/// What no thread may do.
pub const FORBIDDEN_TO_ALL: &[Call] = &[
    ("socket", "socket"),
    ("open", "openat"),
    ("exec", "execve"),
    ("thread", "clone3"),
    ("code", "mmap"),
    ("signal", "kill"),
    ("signal-parent", "tgkill"),
    ("terminal-input", "ioctl"),
    ("async", "fcntl"),
    ("trace", "ptrace"),
    ("ring", "io_uring_setup"),
];

/// What this kind of thread may not do and others may.
pub fn calls_of_others(kind: &str) -> &'static [Call] {
    match kind {
        "control" | "operation" => &[("run", "ioctl"), ("accept", "accept4")],
        "vcpu" => &[
            ("memslot", "ioctl"),
            ("accept", "accept4"),
            ("lock", "fcntl"),
        ],
        "block" => &[("run", "ioctl"), ("send", "sendto")],
        "net" => &[("run", "ioctl"), ("truncate", "ftruncate")],
        "device" => &[
            ("run", "ioctl"),
            ("memslot", "ioctl"),
            ("truncate", "ftruncate"),
        ],
        "api" => &[("interrupt", "ioctl"), ("truncate", "ftruncate")],
        "migration" => &[
            ("run", "ioctl"),
            ("socket-option", "setsockopt"),
            ("others-priority", "sched_setattr"),
        ],
        "encoding" => &[
            ("run", "ioctl"),
            ("send", "sendto"),
            ("others-priority", "sched_setattr"),
        ],
        "postcopy" => &[
            ("run", "ioctl"),
            ("memslot", "ioctl"),
            ("socket-option", "setsockopt"),
            ("truncate", "ftruncate"),
        ],
        other => panic!("no such kind: {other}"),
    }
}

/// Runs one case.
pub fn run(case: &str) {
    let words: Vec<&str> = case.split('/').collect();
    match words[..] {
        ["forbidden", kind, call] => {
            close(SeccompMode::On);
            let call = call.to_owned();
            within(kind, move || {
                attempt(&call);
            });
        }
        ["work", kind] => {
            close(SeccompMode::On);
            within(kind, ordinary_work);
        }
        ["abort", kind] => {
            close(SeccompMode::On);
            within(kind, || std::process::abort());
        }
        ["thread", kind] => {
            close(SeccompMode::On);
            within(kind, || drop(std::thread::spawn(|| ())));
        }
        ["log"] => {
            close(SeccompMode::Log);
            within("vcpu", || attempt("socket"));
        }
        ["paths"] => paths(),
        ["capabilities"] => capabilities(),
        ["user"] => user(),
        ["open"] => open(),
        _ => panic!("no such case: {case}"),
    }
}

fn close(mode: SeccompMode) {
    close_as(mode, None);
}

fn close_as(mode: SeccompMode, user: Option<User>) {
    sandbox::restrict(mode, user, last_words).expect("the sandbox closes");
    assert!(sandbox::is_closed());
}

fn last_words() {
    // What gives a terminal back must pass everywhere; here it is no terminal, and that is fine.
    // SAFETY: all zeroes are a valid termios.
    let attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a valid termios.
    unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw const attributes) };
    // SAFETY: the pointer and the length are those of a constant.
    unsafe { libc::write(2, LAST_WORDS.as_ptr().cast(), LAST_WORDS.len()) };
}

/// Runs `body` under the filter of `kind`.
fn within(kind: &str, body: impl FnOnce() + Send + 'static) {
    let kind = ThreadKind::ALL
        .into_iter()
        .find(|known| known.name() == kind)
        .expect("a kind by its name");
    if kind == ThreadKind::Control {
        sandbox::enter(kind).expect("the filter is installed");
        body();
    } else {
        let thread = sandbox::spawn("test", kind, body).expect("a thread");
        thread.join().expect("it does not panic");
    }
}

fn attempt(call: &str) {
    let ioctl = |request: libc::c_ulong| {
        // SAFETY: no such descriptor is open, so that nothing is done even if it is let through.
        unsafe { libc::ioctl(-1, request, 0) };
    };
    match call {
        // SAFETY: no such descriptor is open, and the value is none.
        "socket-option" => drop(unsafe {
            // The number of TCP_NODELAY, and of another option of all sockets.
            let (level, option) = (libc::SOL_SOCKET, libc::TCP_NODELAY);
            libc::setsockopt(-1, level, option, std::ptr::null(), 0)
        }),
        "others-priority" => {
            // SAFETY: a null pointer is refused.
            let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 1, std::ptr::null::<u8>(), 0) };
        }
        // SAFETY: takes no pointers.
        "socket" => drop(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) }),
        "open" => drop(File::open("/")),
        // SAFETY: the path and both vectors are valid, and empty.
        "exec" => drop(unsafe {
            libc::execve(
                c"".as_ptr(),
                [std::ptr::null()].as_ptr(),
                [std::ptr::null()].as_ptr(),
            )
        }),
        "thread" => {
            // SAFETY: a null pointer is refused.
            unsafe { libc::syscall(libc::SYS_clone3, 0, 0) };
        }
        "code" => map_code(),
        // SAFETY: takes no pointers; signal 0 is none.
        "signal" => drop(unsafe { libc::kill(1, 0) }),
        "signal-parent" => {
            // SAFETY: takes no pointers; signal 0 is none.
            unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
        }
        "terminal-input" => ioctl(libc::TIOCSTI),
        // SAFETY: takes no pointers.
        "async" => drop(unsafe { libc::fcntl(0, libc::F_SETOWN, 1) }),
        // SAFETY: takes no pointers that are followed for this request.
        "trace" => drop(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
        "ring" => {
            // SAFETY: a null pointer is refused.
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
        }
        "run" => ioctl(0xae80),
        "memslot" => ioctl(0x4020_ae46),
        "interrupt" => ioctl(0x4008_ae61),
        "accept" => {
            // SAFETY: null pointers ask for no address.
            unsafe { libc::accept4(-1, std::ptr::null_mut(), std::ptr::null_mut(), 0) };
        }
        // SAFETY: nothing is read for no bytes.
        "send" => drop(unsafe { libc::send(-1, std::ptr::null(), 0, 0) }),
        // SAFETY: no such descriptor is open.
        "lock" => drop(unsafe { libc::fcntl(-1, libc::F_OFD_SETLK, 0) }),
        // SAFETY: takes no pointers.
        "truncate" => drop(unsafe { libc::ftruncate(-1, 0) }),
        other => panic!("no such call: {other}"),
    }
}

fn map_code() {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping where the kernel likes it.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
}

/// What the standard library, the allocator and the C library do behind every thread's back.
fn ordinary_work() {
    let mut map = HashMap::new();
    for size in [16, 4096, 1 << 17, 1 << 20, 64 << 20] {
        let mut block = vec![1_u8; size];
        block.resize(size * 2, 2);
        map.insert(size, block.len());
    }
    assert_eq!(map[&16], 32);
    let many: Vec<Box<[u8]>> = (0..5000)
        .map(|_| vec![0; 3000].into_boxed_slice())
        .collect();
    drop(many);
    let (sender, receiver) = channel::<u8>();
    let timeout = Duration::from_millis(1);
    assert!(receiver.recv_timeout(timeout).is_err());
    sender.send(1).expect("the other end is here");
    assert_eq!(receiver.recv(), Ok(1));
    std::thread::sleep(timeout);
    std::thread::yield_now();
    let start = Instant::now();
    while start.elapsed() < timeout {}
    assert!(SystemTime::now() > SystemTime::UNIX_EPOCH);
    eprintln!("process {}", std::process::id());
}

fn is_denied<T>(result: std::io::Result<T>, what: &str) {
    match result {
        Ok(_) => panic!("{what} is possible"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}"),
    }
}

/// Landlock by itself, without seccomp.
fn paths() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, "content").expect("a file");
    let file = File::open(&path).expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a TCP port");
    let address = listener.local_addr().expect("its address");
    let abi = landlock_abi();
    // SAFETY: takes no pointers.
    let parent = unsafe { libc::getppid() };

    close(SeccompMode::Off);

    is_denied(File::open(&path), "open");
    is_denied(
        File::open("/dev/kvm").or_else(|_| File::open("/dev/null")),
        "open a device",
    );
    is_denied(File::open("/proc/self/mem"), "open /proc/self/mem");
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    is_denied(
        File::options().write(true).open(again),
        "reopen for writing",
    );
    is_denied(File::create(directory.path().join("new")), "create");
    is_denied(fs::remove_file(&path), "remove");
    is_denied(fs::rename(&path, directory.path().join("b")), "rename");
    is_denied(
        fs::create_dir(directory.path().join("d")),
        "create a directory",
    );
    is_denied(fs::read_dir(directory.path()), "list a directory");
    is_denied(
        UnixListener::bind(directory.path().join("s")),
        "bind a Unix socket",
    );
    is_denied(Command::new("/bin/true").status(), "execute");
    if abi >= 4 {
        is_denied(TcpListener::bind("127.0.0.1:0"), "bind a TCP port");
        is_denied(TcpStream::connect(address), "connect to a TCP port");
    }
    if abi >= 6 {
        // SAFETY: takes no pointers; signal 0 is none.
        assert_eq!(
            // SAFETY: signal 0 asks and does nothing.
            unsafe { libc::kill(parent, 0) },
            -1,
            "signal another process"
        );
    }
}

fn capabilities() {
    let mut status = File::open("/proc/self/status").expect("/proc is mounted");

    close(SeccompMode::Off);

    let mut text = String::new();
    status.read_to_string(&mut text).expect("it can be read");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(
            text.contains(&format!("{set}:\t0000000000000000")),
            "{text}"
        );
    }
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    // SAFETY: the path is a C string.
    let result = unsafe { libc::chroot(c"/".as_ptr()) };
    assert_eq!(result, -1, "chroot is for who has CAP_SYS_CHROOT");
}

/// Another user from there on, in every thread, with nothing of root's but what was open.
fn user() {
    let mut status = File::open("/proc/thread-self/status").expect("/proc is mounted");
    let mut roots = tempfile::tempfile().expect("a file of root's");
    close_as(
        SeccompMode::Off,
        Some("64990:64991".parse().expect("a user")),
    );
    roots.write_all(b"on").expect("it is still open");
    let mut text = String::new();
    status.read_to_string(&mut text).expect("it can be read");
    assert_user(&text);
    // SAFETY: takes nothing, and always succeeds.
    within("operation", || assert_eq!(unsafe { libc::getuid() }, 64990));
}

/// `Uid` and `Gid` are the real, the effective, the saved and the file system's (proc(5)).
fn assert_user(status: &str) {
    for line in [
        "Uid:\t64990\t64990\t64990\t64990",
        "Gid:\t64991\t64991\t64991\t64991",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
    ] {
        assert!(status.lines().any(|one| one == line), "{line} in {status}");
    }
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    assert_eq!(groups.map(str::trim), Some(""), "{status}");
}

/// What was opened before works as before, under the filter of a thread that uses it.
fn open() {
    let mut file = tempfile::tempfile().expect("a file");
    let (mut ours, theirs) = UnixStream::pair().expect("two sockets");
    close(SeccompMode::On);
    within("operation", move || {
        file.write_all(b"snapshot").expect("it can be written");
        file.set_len(4096).expect("it can be made longer");
        file.sync_all().expect("it can be brought to disk");
        file.rewind().expect("it can be read again");
        let mut text = [0; 8];
        file.read_exact(&mut text).expect("it can be read");
        assert_eq!(&text, b"snapshot");
        assert_eq!(file.metadata().expect("it has a size").len(), 4096);
    });
    within("api", move || {
        let mut theirs = theirs;
        theirs.set_nonblocking(true).expect("a flag");
        theirs
            .write_all(b"answer")
            .expect("a client can be answered");
    });
    let mut answer = [0; 6];
    ours.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"answer");
}

/// Version of the kernel's Landlock; below 1: none.
pub fn landlock_abi() -> libc::c_long {
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION (1) the pointer is null and the size 0.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) }
}

/// Whether the kernel has seccomp filters.
pub fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    let operation = libc::SECCOMP_GET_ACTION_AVAIL;
    // SAFETY: this operation reads one u32.
    unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, &raw const action) == 0 }
}
