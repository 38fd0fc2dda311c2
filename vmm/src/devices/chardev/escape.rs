//! Keys that a person at the terminal types for the VMM and not for the guest.

/// Ctrl-A: the next key is for the VMM.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h says.
pub(super) const HELP: &[u8] = b"\r\nCtrl-A x  end the guest at once\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n\
    Ctrl-A h  this help\r\n";

/// What the keys ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// Bytes for the guest.
    pub input: Vec<u8>,
    /// Ctrl-A x was typed.
    pub quit: bool,
    /// Ctrl-A h was typed.
    pub help: bool,
}

/// Finds escape keys in what is typed, over any number of reads.
#[derive(Default)]
pub(super) struct EscapeParser {
    escaped: bool,
}

impl EscapeParser {
    /// Takes `typed` apart.
    pub(super) fn parse(&mut self, typed: &[u8]) -> Keys {
        let mut keys = Keys::default();
        for &byte in typed {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    keys.input.push(byte);
                }
                continue;
            }
            match byte {
                ESCAPE => keys.input.push(ESCAPE),
                b'x' | b'X' => keys.quit = true,
                b'h' | b'H' | b'?' => keys.help = true,
                _ => {}
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_escape_split_over_reads_quits() {
        let mut parser = EscapeParser::default();
        let keys = parser.parse(b"ls\r\x01");
        assert_eq!((keys.input.as_slice(), keys.quit), (&b"ls\r"[..], false));
        assert!(parser.parse(b"x").quit);
    }

    #[test]
    fn parser_doubled_escape_reaches_the_guest() {
        let keys = EscapeParser::default().parse(b"\x01\x01x\x01h\x01qz");
        assert_eq!(
            keys,
            Keys {
                input: b"\x01xz".to_vec(),
                quit: false,
                help: true
            }
        );
    }
}
