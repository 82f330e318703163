//! Shows start-up profiles.

pub mod html;
