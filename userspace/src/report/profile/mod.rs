//! Shows start-up profiles.

mod human;

use std::io::{self, Write};

use crate::{cli::Format, profile::Profile};

/// Writes profiles of the same: all of them if the format can hold several, else the one of median
/// length.
pub fn write(
    profiles: &[Profile],
    format: Format,
    shows_path: bool,
    to: &mut dyn Write,
) -> io::Result<()> {
    let mut by_length: Vec<_> = profiles.iter().collect();
    by_length.sort_by_key(|profile| profile.length_ns);
    let Some(median) = by_length.get(by_length.len() / 2) else {
        return Ok(());
    };
    match format {
        Format::Human => to.write_all(human::render(median, shows_path).as_bytes()),
        Format::Json => Ok(()),
    }
}
