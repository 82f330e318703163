//! Writes results to files: whole, or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{html, json, markdown, svg};
use crate::{
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
                // Made and removed again: nothing is left behind, whatever comes.
                let aside = Aside::create(path).map_err(export_error(path))?;
                drop(aside);
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

/// Whether it is something that is written to rather than replaced, as /dev/stdout.
fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if is_device(path) {
        return fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    }
    let aside = Aside::create(path)?;
    fs::write(&aside.path, text)?;
    fs::rename(&aside.path, &aside.target)
}

fn export_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Export {
        path: path.to_path_buf(),
        source,
    }
}

/// An empty file beside the one to be written; removed when dropped, unless renamed.
struct Aside {
    path: PathBuf,
    /// What the path that was given leads to.
    target: PathBuf,
}

impl Aside {
    fn create(path: &Path) -> io::Result<Self> {
        let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let path = target.with_file_name(name);
        fs::File::create(&path)?;
        Ok(Self { path, target })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
