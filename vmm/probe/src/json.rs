//! One JSON object a line, written piece by piece: no allocation, no half lines.

use core::fmt::{self, Write};

/// A line in the making. `finish` ends it.
pub struct Line<'a, W: Write> {
    out: &'a mut W,
}

impl<'a, W: Write> Line<'a, W> {
    /// Opens the object with the two fields that every line has.
    pub fn new(out: &'a mut W, t_us: u64, event: &str) -> Self {
        let _ = out.write_char('{');
        Self::opened(out, t_us, event)
    }

    /// The same, where the opening brace has been sent already.
    pub fn opened(out: &'a mut W, t_us: u64, event: &str) -> Self {
        let _ = write!(out, "\"t_us\":{t_us},\"ev\":\"{event}\"");
        Self { out }
    }

    /// A number, or whatever prints as one.
    #[must_use]
    pub fn num(self, key: &str, value: impl fmt::Display) -> Self {
        let _ = write!(self.out, ",\"{key}\":{value}");
        self
    }

    /// A string, escaped.
    #[must_use]
    pub fn text(self, key: &str, value: impl fmt::Display) -> Self {
        let _ = write!(self.out, ",\"{key}\":\"");
        let _ = write!(Escape(self.out), "{value}");
        let _ = self.out.write_char('"');
        self
    }

    /// An address or a word of memory, in hex.
    #[must_use]
    pub fn hex(self, key: &str, value: u64) -> Self {
        let _ = write!(self.out, ",\"{key}\":\"{value:#x}\"");
        self
    }

    /// Closes the object and the line.
    pub fn finish(self) {
        let _ = self.out.write_str("}\n");
    }
}

struct Escape<'a, W: Write>(&'a mut W);

impl<W: Write> Write for Escape<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => write!(self.0, "\\{c}")?,
                c if c < ' ' || c == '\x7f' => write!(self.0, "\\u{:04x}", c as u32)?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A ratio to two decimals, without floating point.
pub struct Hundredths(pub u64);

impl fmt::Display for Hundredths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    #[test]
    fn line_with_all_kinds_is_one_object() {
        let mut out = String::new();
        Line::new(&mut out, 12, "beat")
            .num("seq", 3)
            .text("word", "a\"b\\c\n")
            .hex("gpa", 0x1000)
            .num("ratio", Hundredths(1205))
            .finish();
        assert_eq!(
            out,
            "{\"t_us\":12,\"ev\":\"beat\",\"seq\":3,\"word\":\"a\\\"b\\\\c\\u000a\",\
             \"gpa\":\"0x1000\",\"ratio\":12.05}\n"
        );
    }

    #[test]
    fn opened_line_lacks_only_its_brace() {
        let mut out = String::from("{");
        Line::opened(&mut out, 0, "start").finish();
        assert_eq!(out, "{\"t_us\":0,\"ev\":\"start\"}\n");
    }
}
