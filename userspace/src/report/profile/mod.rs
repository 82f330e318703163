//! Shows start-up profiles.

pub mod human;
