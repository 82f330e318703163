//! Writes results to files: whole, or not at all.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{html, json, markdown, svg};
use crate::{
    aside::{Aside, ORDINARY, is_device},
    bench::{Results, gate::Finding},
    cli,
    error::Error,
};

type Render = fn(&Results, &[Finding]) -> String;

/// The files that were asked for.
pub struct Exports(Vec<(PathBuf, Render)>);

impl Exports {
    /// Makes sure that each can be written, before the measurement takes its time.
    ///
    /// # Errors
    /// [`Error::Export`], or [`Error::Overwrite`] for the file to compare with.
    pub fn prepare(arguments: &cli::Bench) -> Result<Self, Error> {
        let wanted: [(&Option<PathBuf>, Render); 4] = [
            (&arguments.export_json, json::render),
            (&arguments.export_markdown, markdown::render),
            (&arguments.export_svg, |results, _| svg::render(results)),
            (&arguments.export_html, html::render),
        ];
        let mut exports = Vec::new();
        for (path, render) in wanted {
            let Some(path) = path else { continue };
            if arguments
                .against
                .as_deref()
                .is_some_and(|other| is_same(other, path))
            {
                return Err(Error::Overwrite(path.clone()));
            }
            if !is_device(path) {
                // Made and dropped: nothing is left behind, whatever comes.
                Aside::create(path, ORDINARY).map_err(export_error(path))?;
            }
            exports.push((path.clone(), render));
        }
        Ok(Self(exports))
    }

    /// # Errors
    /// [`Error::Export`]; a file that could not be written is as it was.
    pub fn write(self, results: &Results, findings: &[Finding]) -> Result<(), Error> {
        for (path, render) in self.0 {
            write(&path, &render(results, findings)).map_err(export_error(&path))?;
        }
        Ok(())
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if is_device(path) {
        return fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
    }
    let mut aside = Aside::create(path, ORDINARY)?;
    aside.file().write_all(text.as_bytes())?;
    aside.commit()
}

fn export_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Export {
        path: path.to_path_buf(),
        source,
    }
}
