//! What stands in the way of an image.

use serde_json::json;

use super::{Lines, Report, plural};
use crate::{error::Error, obstacle::Obstacle, watch::CapturePoint};

impl Report {
    /// # Errors
    /// [`Error::Output`].
    pub fn checked(
        &self,
        words: &[String],
        point: CapturePoint,
        found: &[Obstacle],
    ) -> Result<(), Error> {
        if self.json {
            let object = json!({
                "command": words,
                "point": point,
                "ok": found.is_empty(),
                "obstacles": found.iter().map(Obstacle::to_json).collect::<Vec<_>>(),
            });
            return self.line("check", object);
        }
        let mut out = Lines::default();
        let command = words.join(" ");
        out.add(&match found.len() as u64 {
            0 => format!("Nothing stands in the way of an image of {command} at {point}."),
            count => {
                let count = plural(count, "obstacle");
                format!("No image of {command} at {point}: {count}.")
            }
        });
        for obstacle in found {
            let code = obstacle.code;
            out.add("");
            out.add(&format!("  {code}: {obstacle}"));
            if let Some(origin) = obstacle.origin() {
                out.add(&format!("    made: {origin}"));
            }
            out.add(&format!("    so:   {}", code.meaning()));
            out.add(&format!("    fix:  {}", code.fix()));
        }
        out.print()
    }
}
