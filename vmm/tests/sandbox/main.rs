//! What the sandbox lets through, and what it stops.
//!
//! Each case closes the sandbox around a process of its own: this program, started once more with
//! the case's name in the environment. Such a process must have one thread when it begins, and so
//! this test brings its own harness.

mod child;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use pindah_vmm::sandbox::{EXIT_CODE, ThreadKind};

/// Names the case in a child.
const CASE: &str = "PINDAH_SANDBOX_CASE";

fn main() {
    if let Ok(case) = std::env::var(CASE) {
        child::run(&case);
        return;
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![
        needs_seccomp("forbidden_call_in_log_mode_is_done", log_mode),
        Trial::test("closed_sandbox_has_no_paths_and_no_peers", no_paths),
        Trial::test("closed_sandbox_has_no_capabilities", no_capabilities),
        Trial::test("closed_sandbox_keeps_what_is_open", open_files),
        Trial::test("closed_sandbox_runs_as_its_user", as_user),
    ];
    for kind in ThreadKind::ALL {
        let name = |what: &str| format!("{what}_{}_thread", kind.name());
        trials.push(needs_seccomp(&name("forbidden_call_ends"), move || {
            forbidden(kind)
        }));
        trials.push(needs_seccomp(&name("ordinary_work_passes_in"), move || {
            expect_success(&start(&format!("work/{}", kind.name())))
        }));
        trials.push(needs_seccomp(&name("abort_is_what_it_was_in"), move || {
            expect_signal("abort", kind, libc::SIGABRT)
        }));
        // The C library blocks all signals while it makes a thread.
        trials.push(needs_seccomp(&name("no_thread_starts_in"), move || {
            expect_signal("thread", kind, libc::SIGSYS)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn needs_seccomp(name: &str, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        if child::has_seccomp() {
            test()
        } else {
            eprintln!("skipped: this kernel has no seccomp filters");
            Ok(())
        }
    })
}

/// Runs a case to its end.
fn start(case: &str) -> Output {
    let program = std::env::current_exe().expect("this program has a path");
    Command::new(program)
        .env(CASE, case)
        .env_remove("RUST_BACKTRACE")
        .output()
        .expect("this program can be started again")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_success(output: &Output) -> Result<(), Failed> {
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{}: {}", output.status, stderr(output)).into())
    }
}

fn forbidden(kind: ThreadKind) -> Result<(), Failed> {
    let kind = kind.name();
    let own = child::calls_of_others(kind).iter();
    for (call, name) in child::FORBIDDEN_TO_ALL.iter().chain(own) {
        let output = start(&format!("forbidden/{kind}/{call}"));
        let text = stderr(&output);
        let expected =
            format!("({kind}) made a system call that its sandbox forbids: {name} (number ");
        if output.status.code() != Some(EXIT_CODE) || !text.contains(&expected) {
            return Err(format!("{}: {}: {text}", call, output.status).into());
        }
        if !text.starts_with(child::LAST_WORDS) || text.lines().count() != 2 {
            return Err(format!("{call}: more or less than one line: {text}").into());
        }
    }
    Ok(())
}

fn expect_signal(case: &str, kind: ThreadKind, signal: i32) -> Result<(), Failed> {
    let output = start(&format!("{case}/{}", kind.name()));
    if output.status.signal() == Some(signal) {
        Ok(())
    } else {
        Err(format!("{}: {}", output.status, stderr(&output)).into())
    }
}

fn log_mode() -> Result<(), Failed> {
    expect_success(&start("log"))
}

fn no_paths() -> Result<(), Failed> {
    if child::landlock_abi() < 1 {
        eprintln!("skipped: this kernel has no Landlock");
        return Ok(());
    }
    expect_success(&start("paths"))
}

fn no_capabilities() -> Result<(), Failed> {
    expect_success(&start("capabilities"))
}

fn as_user() -> Result<(), Failed> {
    if rustix::process::geteuid().is_root() {
        expect_success(&start("user"))
    } else {
        eprintln!("skipped: only root can become another user");
        Ok(())
    }
}

fn open_files() -> Result<(), Failed> {
    expect_success(&start("open"))
}
