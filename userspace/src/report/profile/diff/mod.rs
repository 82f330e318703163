//! What has changed between start-ups: as a table, or as JSON Lines.

mod json;
mod table;
#[cfg(test)]
mod tests;

use crate::{
    error::Error,
    profile::diff::Diff,
    report::{Lines, Report},
};

impl Report {
    /// Prints what has changed between profiles.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn profiles_compared(&self, diff: &Diff) -> Result<(), Error> {
        if self.json {
            let records = json::records(diff);
            return records
                .into_iter()
                .try_for_each(|(kind, object)| self.line(kind, object));
        }
        let mut out = Lines::default();
        table::add(&mut out, diff);
        out.print()
    }
}
