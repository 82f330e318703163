//! Images: listed, inspected, verified, removed, rehearsed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Lines, Report, list, plural, table,
    units::{Age, Bytes},
};
use crate::{
    error::Error,
    fit::{self, Finding, Severity},
    sensitive::{self, Code, Sensitive},
    store::{Damage, Digest, Encrypted, Image, Stored, Verification},
};

impl Report {
    pub fn images(&self, images: &[Stored]) -> Result<(), Error> {
        if self.json {
            return images
                .iter()
                .try_for_each(|image| self.line("image", without_environment(stored_json(image))));
        }
        let mut rows =
            vec![["NAME", "DIGEST", "CREATED", "SIZE", "POINT", "COMMAND"].map(str::to_owned)];
        for image in images {
            rows.push([
                if image.names().is_empty() {
                    "-".to_owned()
                } else {
                    image.names().join(", ")
                },
                image.digest().short().to_owned(),
                Age::since(image.created_ms()).to_string(),
                Bytes(image.bytes()).to_string(),
                image.point().to_string(),
                match image {
                    Stored::Plain(image) => image.manifest.command.words.join(" "),
                    Stored::Encrypted(Encrypted { opened, .. }) => match opened {
                        None => "(encrypted)".to_owned(),
                        Some(image) => {
                            format!(
                                "(encrypted, open) {}",
                                image.manifest.command.words.join(" ")
                            )
                        }
                    },
                },
            ]);
        }
        table(rows)
    }

    pub fn inspected(&self, image: &Image) -> Result<(), Error> {
        let sensitive = sensitive::of(image)?;
        if self.json {
            let mut object = image_json(image);
            let tell = |found: &Sensitive| {
                let mut object = json!(found);
                object["advice"] = found.code.advice().into();
                object
            };
            object["sensitive"] = sensitive.iter().map(tell).collect();
            return self.line("image", object);
        }
        let manifest = &image.manifest;
        let mut out = Lines::default();
        out.add(&format!("Image {}", image.digest));
        out.add("");
        out.row("names", &image.names.join(", "));
        out.row("created", &Age::since(manifest.created_ms).to_string());
        out.row("command", &manifest.command.words.join(" "));
        out.row(
            "folder",
            &manifest.command.working_directory.display().to_string(),
        );
        if let Some(user) = &manifest.command.user {
            out.row("user", user);
        }
        out.row("point", &manifest.capture.point.to_string());
        out.row("listeners", &list(&manifest.listeners));
        out.row(
            "size",
            &format!(
                "{} in {} files",
                Bytes(manifest.image_bytes()),
                manifest.files.len()
            ),
        );
        out.row("memory", &Bytes(manifest.memory_bytes).to_string());
        out.row(
            "captured on",
            &format!(
                "Linux {} {}",
                manifest.host.kernel, manifest.host.architecture
            ),
        );
        out.row("CRIU", &manifest.criu.version.to_string());
        let held = plural(manifest.dependencies.len() as u64, "file");
        let read = match image.read_files()? {
            None => "those that it read are not known".to_owned(),
            Some(read) => format!("{} that it read", read.files.len()),
        };
        out.row("depends on", &format!("{held} that it holds, {read}"));
        out.add("");
        out.add("Time line, in milliseconds since the exec of the command:");
        for moment in &manifest.capture.time_line {
            let pid = moment
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            out.add(&format!(
                "  {:>9.1}  {pid:>5}  {}",
                moment.at_us as f64 / 1000.0,
                moment.event
            ));
        }
        out.add("");
        out.add("Processes:");
        for process in &manifest.processes {
            out.add(&format!(
                "  {:>5}  {} ({}, uid {}, {} resident)",
                process.pid.to_string(),
                process.name,
                plural(process.threads, "thread"),
                process.uid,
                Bytes(process.resident_bytes),
            ));
        }
        if !sensitive.is_empty() {
            out.add("");
            out.add("What may be secret, or should not be the same in all copies:");
        }
        let mut codes: Vec<Code> = sensitive.iter().map(|found| found.code).collect();
        codes.dedup();
        for code in codes {
            out.add(&format!("  {}: {}", code.name(), code.advice()));
            for found in sensitive.iter().filter(|found| found.code == code) {
                out.add(&format!("    {} ({})", found.about, found.note));
            }
        }
        out.print()
    }

    /// `unrecorded` is how many files that were read could not be recorded, if there is a record.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn verified(
        &self,
        verification: &Verification,
        findings: &[Finding],
        unrecorded: Option<u64>,
    ) -> Result<(), Error> {
        let Verification {
            digest,
            names,
            faults,
            unknown,
            resealed,
            closed,
            ..
        } = verification;
        if self.json {
            let fault = |(path, damage): &(String, Damage)| {
                let mut object = json!(damage);
                object["path"] = path.as_str().into();
                object["message"] = damage.to_string().into();
                object
            };
            return self.line(
                "verify",
                json!({
                    "digest": digest.as_str(),
                    "names": names,
                    "ok": verification.is_whole(),
                    "files": verification.files,
                    "image_bytes": verification.bytes,
                    "faults": faults.iter().map(fault).collect::<Vec<_>>(),
                    "unknown": unknown,
                    "resealed": resealed,
                    "closed": closed,
                    "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
                    "unrecorded": unrecorded,
                }),
            );
        }
        let label = described(digest, names);
        let mut out = Lines::default();
        let of = |severity| {
            let findings = findings.iter();
            findings.filter(move |finding| finding.code.severity() == severity)
        };
        let (breaking, stale) = (of(Severity::Breaks), of(Severity::Stale));
        let verdict = match (
            verification.is_whole(),
            breaking.clone().count(),
            stale.clone().count(),
        ) {
            (false, ..) => "DAMAGED",
            (true, 1.., _) => "UNFIT",
            (true, 0, 1..) => "STALE",
            (true, 0, 0) => "ok",
        };
        match verification.is_whole() {
            false => out.add(&format!("{verdict:<8} {label}")),
            true => out.add(&format!(
                "{verdict:<8} {label}: {}, {}",
                plural(verification.files as u64, "file"),
                Bytes(verification.bytes)
            )),
        }
        for (path, damage) in faults {
            out.add(&format!("         {path} {damage}"));
        }
        for path in unknown {
            out.add(&format!("         warning: {path} is not part of it"));
        }
        for (title, findings) in [("breaks", breaking), ("stale", stale)] {
            let findings: Vec<_> = findings.collect();
            for finding in &findings {
                out.add(&format!("         {title}: {finding}"));
            }
            let codes: BTreeSet<fit::Code> = findings.iter().map(|finding| finding.code).collect();
            for code in codes {
                out.add(&format!("         {code} means: {}", code.meaning()));
            }
        }
        if let Some(count @ 1..) = unrecorded {
            let files = plural(count, "file");
            out.add(&format!(
                "         warning: {files} that it read could not be recorded"
            ));
        }
        if *closed {
            out.add(
                "         it is encrypted, and was not opened: only what is encrypted was compared",
            );
        }
        if *resealed {
            out.add("         restores expect these very files from now on");
        }
        out.print()
    }

    pub fn removed(&self, digest: &Digest, names: &[String]) -> Result<(), Error> {
        if self.json {
            return self.line("rm", json!({ "digest": digest.as_str(), "names": names }));
        }
        let mut out = Lines::default();
        out.add(&format!("Removed {}", described(digest, names)));
        out.print()
    }

    pub fn opened(&self, image: &Image) -> Result<(), Error> {
        let bytes = image.manifest.image_bytes();
        if self.json {
            let (digest, names) = (image.digest.as_str(), &image.names);
            let object = json!({ "digest": digest, "names": names, "image_bytes": bytes });
            return self.line("open", object);
        }
        let mut out = Lines::default();
        let label = described(&image.digest, &image.names);
        out.add(&format!("Open: {label}, {} of memory", Bytes(bytes)));
        out.print()
    }

    pub fn closed(&self, encrypted: &Encrypted) -> Result<(), Error> {
        let Encrypted { digest, names, .. } = encrypted;
        if self.json {
            return self.line(
                "close",
                json!({ "digest": digest.as_str(), "names": names }),
            );
        }
        let mut out = Lines::default();
        out.add(&format!("Closed {}", described(digest, names)));
        out.print()
    }

    pub fn pruned(&self, image: &Stored, is_only_told: bool) -> Result<(), Error> {
        let bytes = image.bytes();
        if self.json {
            let object = json!({
                "digest": image.digest().as_str(),
                "names": image.names(),
                "created_ms": image.created_ms(),
                "image_bytes": bytes,
                "removed": !is_only_told,
            });
            return self.line("prune", object);
        }
        let mut out = Lines::default();
        out.add(&format!(
            "{} {}: {}, {}",
            if is_only_told {
                "Would remove"
            } else {
                "Removed"
            },
            described(image.digest(), image.names()),
            Bytes(bytes),
            Age::since(image.created_ms()),
        ));
        out.print()
    }

    /// What remains after a prune, how much there should be at most, and whether it is more images than were
    /// to be kept.
    pub fn rest_of_prune(&self, bytes: u64, most: Option<u64>, is_more: bool) -> Result<(), Error> {
        let too_much = most.filter(|&most| bytes > most);
        if self.json {
            let object = json!({ "image_bytes": bytes, "fits": too_much.is_none() });
            return self.line("prune_rest", object);
        }
        let mut out = Lines::default();
        let rest = format!("{} remain", Bytes(bytes));
        out.add(&match too_much {
            Some(most) => format!(
                "{rest}, more than {}: in use, kept by --keep, or with a name (--all removes those too)",
                Bytes(most)
            ),
            None if is_more => {
                format!("{rest}: those in use stay, and those with a name (--all removes those too)")
            }
            None => rest,
        });
        out.print()
    }

    pub fn rehearsed(&self, image: &Image) -> Result<(), Error> {
        let set = image.manifest.working_set.clone().unwrap_or_default();
        if self.json {
            let object = json!({
                "digest": image.digest.as_str(),
                "names": image.names,
                "touched_pages": set.touched_pages,
                "written_pages": set.written_pages,
            });
            return self.line("rehearse", object);
        }
        let size = |pages: u64| Bytes(pages * rustix::param::page_size() as u64);
        let mut out = Lines::default();
        out.add(&format!(
            "Rehearsed {} ({}): {} of memory touched until all was answered, {} written to",
            image.label(),
            image.digest.short(),
            size(set.touched_pages),
            size(set.written_pages),
        ));
        out.print()
    }
}

/// An image by its names and its digest.
pub(super) fn described(digest: &Digest, names: &[String]) -> String {
    match names {
        [] => digest.short().to_owned(),
        names => format!("{} ({})", names.join(", "), digest.short()),
    }
}

/// An image of a list. Of an encrypted one that is closed, there is no manifest.
fn stored_json(stored: &Stored) -> Value {
    match stored {
        Stored::Plain(image) => image_json(image),
        Stored::Encrypted(encrypted) => {
            let mut object = match &encrypted.opened {
                Some(image) => image_json(image),
                None => json!({
                    "digest": encrypted.digest.as_str(),
                    "names": encrypted.names,
                    "image_bytes": encrypted.header.image_bytes,
                }),
            };
            object["encrypted"] = json!({
                "open": encrypted.opened.is_some(),
                "key": encrypted.header.key,
                "bytes": encrypted.header.bytes,
                "created_ms": encrypted.header.created_ms,
                "point": encrypted.header.point,
            });
            object
        }
    }
}

pub(super) fn image_json(image: &Image) -> Value {
    json!({
        "digest": image.digest.as_str(),
        "names": image.names,
        "image_bytes": image.manifest.image_bytes(),
        "manifest": image.manifest,
    })
}

/// The environment may hold secrets: it is shown to those who inspect the image, and not in passing.
pub(super) fn without_environment(mut image: Value) -> Value {
    let command = image.pointer_mut("/manifest/command");
    if let Some(command) = command.and_then(Value::as_object_mut) {
        command.remove("environment");
    }
    image
}
