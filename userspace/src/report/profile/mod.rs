//! What a [`Profile`](crate::profile::Profile) is given out as. Nothing is found out here: all is
//! in the profile.

mod diff;
pub mod folded;
pub mod json;
pub mod perfetto;
#[cfg(test)]
pub(crate) mod synthetic;

use crate::profile::{Class, Profile};

/// What a slice or a step was, if that is known, or else its class.
fn text_or_class(profile: &Profile, text: Option<u32>, class: Class) -> &str {
    let known = text.and_then(|text| profile.texts.get(text as usize));
    known.map_or(class.title(), String::as_str)
}
