//! The ways to start a server that are measured against each other.

use std::{ffi::OsString, path::Path, time::Duration};

use crate::{
    bench::{
        self, Subject,
        results::{self, SubjectKind},
    },
    criu::{self, Program},
    error::Error,
    spawn::Command,
    store::{Image, Store},
};

/// The ways to start a server.
pub struct Subjects<'a> {
    pub store: &'a Store,
    pub criu: &'a Program,
    /// Where a plain CRIU writes its log; restores leave their timings beside it.
    pub work: &'a Path,
}

impl Subjects<'_> {
    /// The cold start, the restores, and what they are to be compared with.
    ///
    /// # Errors
    /// [`Error::Command`] or [`Error::Runtime`].
    pub fn all(
        &self,
        cold: Command,
        images: &[Image],
        baselines: &[String],
    ) -> Result<Vec<Subject>, Error> {
        let mut subjects = vec![Subject {
            kind: SubjectKind::Cold,
            command: cold.clone(),
            image: None,
            grace: bench::GRACE,
            timings: None,
        }];
        for image in images {
            subjects.push(self.restored(image)?);
        }
        for baseline in baselines {
            match baseline.as_str() {
                "criu" => {
                    for image in images {
                        subjects.push(self.plain_criu(image)?);
                    }
                }
                command => subjects.push(Subject {
                    kind: SubjectKind::Baseline {
                        name: command.to_owned(),
                    },
                    command: cold.with_words(&["/bin/sh", "-c", command])?,
                    image: None,
                    grace: bench::GRACE,
                    timings: None,
                }),
            }
        }
        Ok(subjects)
    }

    /// This program, as a person would call it.
    ///
    /// # Errors
    /// [`Error::Command`] or [`Error::Runtime`].
    pub fn restored(&self, image: &Image) -> Result<Subject, Error> {
        let program = std::env::current_exe().map_err(Error::Runtime)?;
        let timings = self.work.with_file_name("timings.json");
        let words: [OsString; 9] = [
            program.into(),
            "--store".into(),
            self.store.root().into(),
            "--criu".into(),
            self.criu.path.clone().into(),
            "restore".into(),
            "--timings-file".into(),
            timings.clone().into(),
            image.digest.as_str().into(),
        ];
        Ok(Subject {
            kind: SubjectKind::Restored {
                point: image.manifest.capture.point,
            },
            command: resolve(words)?,
            image: Some(identity(image)),
            grace: bench::GRACE,
            timings: Some(timings),
        })
    }

    /// What one would type without warmimg. The pids of the image have to be free, hence
    /// unshare(1); the pipes of the image have to be replaced by those of now.
    fn plain_criu(&self, image: &Image) -> Result<Subject, Error> {
        std::fs::create_dir_all(self.work).map_err(Error::Runtime)?;
        let manifest = &image.manifest;
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut words: Vec<OsString> = unshare.map(OsString::from).to_vec();
        words.push(self.criu.path.clone().into());
        words.extend(criu::plain_restore(
            &image.criu_folder(),
            self.work,
            [manifest.stdout.as_deref(), manifest.stderr.as_deref()],
            manifest.criu.foreign_session,
        ));
        Ok(Subject {
            kind: SubjectKind::Criu {
                point: manifest.capture.point,
            },
            command: resolve(words)?,
            image: Some(identity(image)),
            // unshare(1) ignores SIGTERM, and criu(8) would not pass it on.
            grace: Duration::ZERO,
            timings: None,
        })
    }
}

fn resolve(words: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command, Error> {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    Ok(Command::resolve(&words, None)?)
}

fn identity(image: &Image) -> results::Image {
    results::Image {
        digest: image.digest.to_string(),
        bytes: image.manifest.image_bytes(),
    }
}
