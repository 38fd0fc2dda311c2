//! Questions and answers on a terminal, a line each.

use std::io::{self, BufRead, Write};

use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// A person.
pub struct Dialog<R, W> {
    input: R,
    output: W,
}

/// The terminal shows what is typed again when this is dropped.
struct Hidden(Termios);

impl Hidden {
    /// Nothing if there is no terminal.
    fn begin() -> Option<Self> {
        let terminal = stdin();
        let before = isatty(terminal).then(|| tcgetattr(terminal).ok())??;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Drain, &hidden).ok()?;
        Some(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}

impl<R: BufRead, W: Write> Dialog<R, W> {
    /// With who types `input` and reads `output`.
    pub fn new(input: R, output: W) -> Self {
        Self { input, output }
    }

    /// Says a line.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.output, "{text}")
    }

    /// Asks for a line; none if nobody is there any more.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn ask(&mut self, prompt: &str) -> io::Result<Option<String>> {
        let line = self.line(prompt)?;
        Ok(line.map(|line| line.trim().to_owned()))
    }

    /// The same for a secret, which is not shown, and in which blanks count.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn ask_secret(&mut self, prompt: &str) -> io::Result<Option<String>> {
        let _hidden = Hidden::begin();
        self.line(prompt)
    }

    /// Asks until `read` takes the answer; none for an empty one.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn ask_for<T>(
        &mut self,
        prompt: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> io::Result<Option<T>> {
        loop {
            let Some(answer) = self.ask(prompt)?.filter(|answer| !answer.is_empty()) else {
                return Ok(None);
            };
            match read(&answer) {
                Ok(value) => return Ok(Some(value)),
                Err(message) => self.say(&message)?,
            }
        }
    }

    fn line(&mut self, prompt: &str) -> io::Result<Option<String>> {
        write!(self.output, "{prompt}")?;
        self.output.flush()?;
        let mut line = String::new();
        if self.input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_is_repeated_until_it_is_answered() {
        let mut shown = Vec::new();
        let number = |text: &str| text.parse::<u8>().map_err(|_| "a number".to_owned());
        let mut dialog = Dialog::new(b"x\n 7 \n\n".as_slice(), &mut shown);
        assert_eq!(dialog.ask_for("? ", number).unwrap(), Some(7));
        assert_eq!(dialog.ask_for("? ", number).unwrap(), None);
        assert_eq!(dialog.ask("? ").unwrap(), None);
        assert_eq!(String::from_utf8(shown).unwrap(), "? a number\n? ? ? ");
    }

    #[test]
    fn blanks_of_a_secret_count() {
        let mut dialog = Dialog::new(b" a b \r\n".as_slice(), Vec::new());
        assert_eq!(dialog.ask_secret("? ").unwrap().unwrap(), " a b ");
    }
}
