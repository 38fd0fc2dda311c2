//! The ways out.

use core::fmt::{Display, Write};

use pindah_probe::cmdline::Exit;
use pindah_probe::json::Line;

use crate::boot;
use crate::machine::{in8, out8, out16, undefined};

/// Reports an error that leaves nothing to do, and resets the machine.
pub fn fail(out: &mut impl Write, message: impl Display) -> ! {
    let _ = out.write_str("\n");
    Line::new(out, 0, "error").text("message", message).finish();
    leave(Exit::Reset, 0x604, 0)
}

/// Ends the guest; what does not work is followed by what is rougher.
pub fn leave(how: Exit, pm1a: u16, s5_typ: u16) -> ! {
    match how {
        Exit::Poweroff => {
            out16(pm1a, 1 << 13 | s5_typ << 10);
            settle();
        }
        Exit::Reset => {
            out8(0x64, 0xfe);
            settle();
        }
        Exit::Crash => {}
    }
    boot::clear_idt();
    loop {
        undefined();
    }
}

/// Time for the VMM to act on a write: as much as some port reads take.
fn settle() {
    for _ in 0..1000 {
        in8(0x80);
    }
}
