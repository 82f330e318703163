//! What a [`Profile`](crate::profile::Profile) is given out as. Nothing is found out here: all is
//! in the profile.

pub mod folded;
pub mod json;
#[cfg(test)]
pub(crate) mod synthetic;
