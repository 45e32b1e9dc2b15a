//! Lines on standard output and standard error: the only way in which anything here prints.

use std::io::Write;

/// Prints a line; a reader that went away (`| head`) is no error.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// The same on standard error.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
