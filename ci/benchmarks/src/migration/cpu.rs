//! Processor time of whole processes, in nanoseconds (`clock_getcpuclockid(3)`): user and system,
//! of all threads, ended ones too.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// What a process has used so far. It may have ended, but must not have been waited for.
///
/// # Errors
/// If there is no such process.
pub fn used(process: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(process.cast_signed()))
        .with_context(|| format!("process {process} is gone"))?;
    let time = clock.now().context("reading a process's CPU clock")?;
    Ok(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn used_of_a_process_that_has_ended_is_still_known() {
        let mut child = Command::new("true").spawn().unwrap();
        while !std::fs::read_to_string(format!("/proc/{}/stat", child.id()))
            .unwrap()
            .contains(") Z ")
        {
            std::thread::yield_now();
        }
        assert!(used(child.id()).unwrap() > Duration::ZERO);
        child.wait().unwrap();
    }
}
