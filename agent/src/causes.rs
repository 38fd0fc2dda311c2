//! An error with all that led to it.

use std::error::Error;
use std::fmt::Write as _;

/// One line: the error, then each cause after a colon.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // A string takes it.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
