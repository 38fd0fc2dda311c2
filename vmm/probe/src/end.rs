//! The ways out.

use core::fmt::{Display, Write};

use pindah_probe::json::Line;
use pindah_probe::options::{Exit, Options};

use crate::boot;
use crate::machine::{in8, out8, out16, undefined};

/// Reports an error that leaves nothing to do, and resets the machine.
pub fn fail(out: &mut impl Write, message: impl Display) -> ! {
    let _ = out.write_str("\n");
    Line::new(out, 0, "error").text("message", message).finish();
    leave(Exit::Reset, &Options::default())
}

/// Ends the guest; what does not work is followed by what is rougher.
pub fn leave(how: Exit, options: &Options) -> ! {
    match how {
        Exit::Poweroff => {
            let sleep_type = options.s5_typ;
            if options.sleep_control == 0 {
                out16(options.pm1a, 1 << 13 | sleep_type << 10);
            } else {
                out8(options.sleep_control, 1 << 5 | (sleep_type << 2) as u8);
            }
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
