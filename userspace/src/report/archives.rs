//! Images that were exported and imported.

use std::path::Path;

use serde_json::json;

use super::{Lines, Report, images::described, units::Bytes};
use crate::{
    archive::{Exported, Imported},
    error::Error,
    store::Stored,
};

impl Report {
    pub fn exported(&self, image: &Stored, exported: &Exported, path: &Path) -> Result<(), Error> {
        if self.json {
            return self.line(
                "export",
                json!({
                    "digest": image.digest().as_str(),
                    "names": image.names(),
                    "path": path,
                    "files": exported.files,
                    "image_bytes": exported.image_bytes,
                    "archive_bytes": exported.archive_bytes,
                }),
            );
        }
        let mut out = Lines::default();
        out.add(&format!(
            "Exported {} ({}) to {}: {} of {}",
            image.label(),
            image.digest().short(),
            path.display(),
            Bytes(exported.archive_bytes),
            Bytes(exported.image_bytes),
        ));
        out.print()
    }

    pub fn imported(&self, imported: &Imported) -> Result<(), Error> {
        let Imported {
            image,
            existed,
            resumed_bytes,
        } = imported;
        if self.json {
            return self.line(
                "import",
                json!({
                    "digest": image.digest.as_str(),
                    "names": image.names,
                    "image_bytes": image.manifest.image_bytes(),
                    "existed": existed,
                    "resumed_bytes": resumed_bytes,
                    "after_restore": image.manifest.after_restore,
                }),
            );
        }
        let mut out = Lines::default();
        let label = described(&image.digest, &image.names);
        out.add(&match existed {
            true => format!("Already there: {label}"),
            false => format!("Imported {label}: {}", Bytes(image.manifest.image_bytes())),
        });
        // They run on this host.
        for hook in &image.manifest.after_restore {
            out.add(&format!("  after each restore: {hook}"));
        }
        if *resumed_bytes > 0 {
            out.add(&format!(
                "  {} of it had arrived before",
                Bytes(*resumed_bytes)
            ));
        }
        out.print()
    }
}
