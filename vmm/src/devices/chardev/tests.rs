//! The hub as its clients see it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pindah_vmm_api::SerialConfig;

use super::*;

fn off() -> Chardev {
    Chardev::start("test", ChardevResources::Off, || {}).unwrap()
}

fn socket(path: &Path) -> Chardev {
    let resources = open(&SerialConfig::Socket(path.to_owned())).unwrap();
    Chardev::start("test", resources, || {}).unwrap()
}

fn expect(stream: &mut UnixStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == expected, "got {:?}", String::from_utf8_lossy(&got));
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn socket_clients_get_history_then_live_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let chardev = socket(&path);
    chardev.write(b"early ");
    let mut first = UnixStream::connect(&path).unwrap();
    expect(&mut first, b"early ");
    chardev.write(b"late");
    let mut second = UnixStream::connect(&path).unwrap();
    expect(&mut second, b"early late");
    expect(&mut first, b"late");
}

#[test]
fn late_client_gets_the_last_64_kib() {
    let chardev = off();
    let output: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    for part in output.chunks(777) {
        chardev.write(part);
    }
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    expect(&mut ours, &output[output.len() - HISTORY_BYTES..]);
}

#[test]
fn hanging_client_does_not_hold_up_the_others() {
    let chardev = off();
    let (mut hanging, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    let (mut reading, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    // More than any socket buffer takes; the reader keeps up, so it loses nothing.
    for round in 0..200_u32 {
        let block = vec![round as u8; 16 << 10];
        chardev.write(&block);
        expect(&mut reading, &block);
    }
    drop(chardev);
    let mut rest = Vec::new();
    hanging.read_to_end(&mut rest).unwrap();
    assert!(!rest.is_empty() && rest.len() < 200 * (16 << 10));
    assert!(
        rest.is_sorted(),
        "a slow reader loses, but nothing is out of order"
    );
}

#[test]
fn input_from_all_clients_reaches_the_device() {
    let chardev = off();
    let (mut first, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    let (mut second, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    let mut got = [0; 8];
    first.write_all(b"ab").unwrap();
    until(|| chardev.has_input());
    assert_eq!(chardev.read_input(&mut got), 2);
    second.write_all(b"cd").unwrap();
    until(|| chardev.has_input());
    assert_eq!(chardev.read_input(&mut got), 2);
    assert_eq!(&got[..2], b"cd");
}

#[test]
fn restored_input_comes_first_and_stays_within_the_bound() {
    let chardev = off();
    chardev.restore_input(&[1; INPUT_BYTES]);
    chardev.restore_input(b"saved");
    let waiting = chardev.waiting_input();
    assert_eq!(waiting.len(), INPUT_BYTES);
    assert!(waiting.starts_with(b"saved\x01"));
}

#[test]
fn input_beyond_the_bound_waits_in_the_socket() {
    let chardev = off();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    let sent: Vec<u8> = (0..50_000_u32).map(|at| (at % 253) as u8).collect();
    let input = sent.clone();
    let writer = std::thread::spawn(move || ours.write_all(&input).map(|()| ours));
    let mut got: Vec<u8> = Vec::new();
    let mut buffer = [0; 100];
    while got.len() < sent.len() {
        until(|| chardev.has_input());
        assert!(chardev.shared.input().bytes.len() <= INPUT_BYTES);
        let count = chardev.read_input(&mut buffer);
        got.extend(&buffer[..count]);
    }
    assert!(got == sent);
    writer.join().unwrap().unwrap();
}

#[test]
fn client_that_only_sends_still_gets_output_after_half_close() {
    let chardev = off();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    ours.write_all(b"x").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    until(|| chardev.has_input());
    chardev.write(b"answer");
    expect(&mut ours, b"answer");
}

#[test]
fn file_gets_everything_by_close() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "before ").unwrap();
    let resources = open(&SerialConfig::File(path.clone())).unwrap();
    let chardev = Chardev::start("test", resources, || {}).unwrap();
    let mut expected = b"before ".to_vec();
    for round in 0..500_u32 {
        let line = format!("line {round} {}\n", "x".repeat(1000));
        chardev.write(line.as_bytes());
        expected.extend(line.as_bytes());
    }
    chardev.close();
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[test]
fn stdio_pipes_carry_both_directions_and_survive_their_ends() {
    let (input, keyboard) = UnixStream::pair().unwrap();
    let (output, mut screen) = UnixStream::pair().unwrap();
    let resources = ChardevResources::Stdio(StdioResources {
        input: File::from(OwnedFd::from(input)),
        output: File::from(OwnedFd::from(output)),
    });
    let chardev = Chardev::start("test", resources, || {}).unwrap();
    chardev.write(b"login: ");
    expect(&mut screen, b"login: ");
    // No terminal, so the escape key is a byte like any other.
    (&keyboard).write_all(b"\x01x").unwrap();
    drop(keyboard);
    until(|| chardev.shared.input().bytes.len() == 2);
    chardev.write(b"still there");
    expect(&mut screen, b"still there");
    drop(screen);
    chardev.write(b"to nobody");
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    chardev.attach(theirs);
    expect(&mut ours, b"login: still thereto nobody");
}

#[test]
fn stdin_regular_file_is_read_to_its_end() {
    let mut input = tempfile::tempfile().unwrap();
    let sent: Vec<u8> = (0..9000_u32).map(|at| (at % 249) as u8).collect();
    input.write_all(&sent).unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let output = File::options().write(true).open("/dev/null").unwrap();
    let resources = ChardevResources::Stdio(StdioResources { input, output });
    let chardev = Chardev::start("test", resources, || {}).unwrap();
    let mut got: Vec<u8> = Vec::new();
    let mut buffer = [0; 64];
    while got.len() < sent.len() {
        until(|| chardev.has_input());
        let count = chardev.read_input(&mut buffer);
        got.extend(&buffer[..count]);
    }
    assert!(got == sent);
}

#[test]
fn terminal_of_another_process_group_is_not_read() {
    let (mut user, terminal) = pseudo_terminal();
    let resources = ChardevResources::Stdio(StdioResources {
        input: terminal.try_clone().unwrap(),
        output: terminal,
    });
    let chardev = Chardev::start("test", resources, || {}).unwrap();
    user.write_all(b"typed for somebody else\n").unwrap();
    chardev.write(b"boot");
    chardev.close();
    assert!(!chardev.has_input());
}

/// The child of the next test: a VMM in the foreground of its own terminal.
#[test]
#[ignore = "run by terminal_is_raw_until_ctrl_a_x"]
fn terminal_child() {
    let quit = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&quit);
    let resources = open(&SerialConfig::Stdio).unwrap();
    assert_eq!(resources.terminal_size(), Some((100, 30)));
    let chardev = Chardev::start("test", resources, move || {
        flag.store(true, Ordering::SeqCst);
    });
    let chardev = chardev.unwrap();
    chardev.write(b"<raw>");
    until(|| quit.load(Ordering::SeqCst));
    let mut buffer = [0; 16];
    let count = chardev.read_input(&mut buffer);
    assert_eq!(&buffer[..count], b"\x03\x01k");
    // `exit` runs no destructors.
    std::mem::forget(chardev);
    std::process::exit(42);
}

#[test]
fn terminal_is_raw_until_ctrl_a_x() {
    let (mut user, terminal) = pseudo_terminal();
    let size = libc::winsize {
        ws_col: 100,
        ws_row: 30,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the pointer is to a valid winsize, which is only read.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "devices::chardev::tests::terminal_child"])
        .args(["--ignored", "--nocapture"])
        .stdin(terminal.try_clone().unwrap())
        .stdout(terminal.try_clone().unwrap());
    let own_terminal = || {
        // SAFETY: no preconditions; safe between fork and exec.
        unsafe { libc::setsid() };
        // SAFETY: takes no pointer; safe between fork and exec.
        unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        Ok(())
    };
    // SAFETY: the closure makes system calls and nothing else.
    unsafe { child.pre_exec(own_terminal) };
    let mut child = child.spawn().unwrap();
    let mut seen: Vec<u8> = Vec::new();
    while !seen.windows(5).any(|window| window == b"<raw>") {
        let mut byte = [0];
        user.read_exact(&mut byte).unwrap();
        seen.extend(byte);
    }
    // In raw mode Ctrl-C is a byte, and nothing is echoed.
    user.write_all(b"\x03\x01\x01k\x01x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    let mut attributes = std::mem::MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to memory of a termios, which is only written to.
    assert_eq!(0, unsafe {
        libc::tcgetattr(terminal.as_raw_fd(), attributes.as_mut_ptr())
    });
    // SAFETY: tcgetattr has filled it.
    let attributes = unsafe { attributes.assume_init() };
    assert_ne!(attributes.c_lflag & libc::ECHO, 0, "given back at exit");
}

fn pseudo_terminal() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both pointers are to valid integers; the others may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty gave us the descriptor, and nobody else has it.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as above.
    let slave = unsafe { File::from_raw_fd(slave) };
    (master, slave)
}

#[test]
fn socket_left_by_a_dead_process_is_replaced_and_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    drop(UnixListener::bind(&path).unwrap());
    let chardev = socket(&path);
    chardev.write(b"new");
    expect(&mut UnixStream::connect(&path).unwrap(), b"new");
    drop(chardev);
    assert!(!path.exists());
}

#[test]
fn socket_of_a_live_process_or_another_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let _live = socket(&path);
    let refused = open(&SerialConfig::Socket(path.clone()));
    assert!(matches!(refused, Err(OpenChardevError::SocketInUse { .. })));
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = open(&SerialConfig::Socket(file.clone()));
    assert!(matches!(refused, Err(OpenChardevError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let refused = open(&SerialConfig::File(directory.path().to_owned()));
    assert!(matches!(refused, Err(OpenChardevError::File { .. })));
}

#[test]
fn history_save_restore_save_agrees() {
    let chardev = off();
    chardev.write(&vec![b'z'; 100_000]);
    chardev.write(b"end");
    let saved = chardev.save("serial").unwrap();
    let other = off();
    other.restore(&saved).unwrap();
    assert_eq!(other.save("serial").unwrap(), saved);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    other.attach(theirs);
    other.write(b"!");
    let mut expected = vec![b'z'; HISTORY_BYTES - 3];
    expected.extend(b"end!");
    // The history has moved on by a byte if the client came after it.
    let mut got = vec![0; HISTORY_BYTES];
    ours.read_exact(&mut got).unwrap();
    assert!(expected.windows(got.len()).any(|window| window == got));
}
