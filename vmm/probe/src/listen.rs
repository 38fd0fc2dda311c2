//! Carries out what comes in on the serial line.

use core::sync::atomic::Ordering::Relaxed;

use pindah_probe::command::Command;

use crate::first::First;
use crate::shared::SETTINGS;
use crate::{end, serial};

/// Bytes taken in one step: each is two exits.
const BYTES_A_STEP: usize = 4;

impl First {
    /// Takes some of what has come in. False if there may be more.
    pub fn listen(&mut self) -> bool {
        for _ in 0..BYTES_A_STEP {
            let Some(byte) = serial::receive() else {
                return true;
            };
            if self.options.echo {
                use core::fmt::Write;
                let _ = self.report.out.write_char(byte as char);
            }
            if self.input.push(byte) {
                self.obey();
            }
        }
        false
    }

    fn obey(&mut self) {
        let mut input = core::mem::take(&mut self.input);
        let line = input.take();
        if line.is_empty() {
            return;
        }
        match Command::parse(line) {
            Ok(command) => {
                self.report.line("command").text("line", line).finish();
                self.carry_out(command);
            }
            Err(error) => self.report.line("error").text("message", error).finish(),
        }
    }

    fn carry_out(&mut self, command: Command<'_>) {
        match command {
            Command::Status => self.report.status(&self.options, self.set.pages()),
            Command::Verify => {
                SETTINGS.full_verify.fetch_add(1, Relaxed);
            }
            Command::Set(word) => self.set(word),
            Command::Corrupt(page) => self.corrupt(page),
            Command::Exit => self.leave(self.options.exit_by),
            Command::Leave(how) => {
                self.report.out.flush();
                end::leave(how, &self.options);
            }
        }
    }

    fn set(&mut self, word: &str) {
        if self.options.apply(word).is_ok() {
            SETTINGS.take(&self.options);
        }
    }

    fn corrupt(&mut self, page: u64) {
        if page < self.set.pages() {
            self.set.corrupt(page);
        } else {
            self.report
                .line("error")
                .text("message", "corrupt: no such page")
                .finish();
        }
    }
}
