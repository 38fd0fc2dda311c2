//! What a person reads: headings, steps with their times, facts.

use std::io::IsTerminal;
use std::time::Instant;

/// Standard output, coloured on a terminal only.
pub(super) struct Page {
    colours: bool,
}

impl Page {
    pub(super) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours }
    }

    /// Begins a part.
    pub(super) fn heading(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    /// Something that was done, and how long it took.
    pub(super) fn step(&self, start: Instant, text: &str) {
        let seconds = format!("{:>7.2} s", start.elapsed().as_secs_f64());
        println!(
            "  {} {}  {text}",
            self.paint("32", "✓"),
            self.paint("2", &seconds)
        );
    }

    /// Something that was seen.
    pub(super) fn fact(&self, name: &str, value: &str) {
        println!("      {}  {value}", self.paint("2", &format!("{name:<12}")));
    }

    /// What a program says while it works.
    pub(super) fn line(&self, text: &str) {
        println!("      {}", self.paint("2", text));
    }

    /// A remark.
    pub(super) fn note(&self, text: &str) {
        println!("\n{}", self.paint("33", text));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}
