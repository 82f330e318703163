//! What a [`Profile`] is given out as. Nothing is found out here: all is in the profile.

mod diff;
pub mod folded;
pub mod html;
mod human;
pub mod json;
pub mod perfetto;
#[cfg(test)]
pub(crate) mod synthetic;

use std::io::{self, Write};

pub use self::folded::Folded;
use crate::profile::{Class, Profile};

/// How a profile is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Human { shows_path: bool },
    Html,
    Json,
    Perfetto,
    Folded(Folded),
}

/// Writes profiles of the same: all of them if the form can hold several, else the one of median
/// length.
///
/// # Errors
/// As writing fails.
pub fn write(profiles: &[Profile], form: Form, to: &mut dyn Write) -> io::Result<()> {
    let mut by_length: Vec<_> = profiles.iter().collect();
    by_length.sort_by_key(|profile| profile.length_ns);
    let Some(median) = by_length.get(by_length.len() / 2) else {
        return Ok(());
    };
    let mut to = io::BufWriter::new(to);
    match form {
        Form::Human { shows_path } => to.write_all(human::render(median, shows_path).as_bytes())?,
        Form::Html => to.write_all(html::render(median).as_bytes())?,
        Form::Json => profiles
            .iter()
            .try_for_each(|profile| json::write(profile, &mut to))?,
        Form::Perfetto => perfetto::write(median, &mut to)?,
        Form::Folded(which) => folded::write(median, which, &mut to)?,
    }
    to.flush()
}

/// What a slice or a step was, if that is known, or else its class.
fn text_or_class(profile: &Profile, text: Option<u32>, class: Class) -> &str {
    let known = text.and_then(|text| profile.texts.get(text as usize));
    known.map_or(class.title(), String::as_str)
}
