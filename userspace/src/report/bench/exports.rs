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
pub struct Exports(Vec<Export>);

struct Export {
    path: PathBuf,
    aside: Aside,
    render: Render,
}

impl Exports {
    /// Makes sure that each can be written, before the measurement takes its time.
    ///
    /// # Errors
    /// [`Error::Export`].
    pub fn prepare(arguments: &cli::Bench) -> Result<Self, Error> {
        let wanted: [(&Option<PathBuf>, Render); 4] = [
            (&arguments.export_json, json::render),
            (&arguments.export_markdown, markdown::render),
            (&arguments.export_svg, |results, _| svg::render(results)),
            (&arguments.export_html, html::render),
        ];
        let wanted = wanted.into_iter();
        let exports = wanted.filter_map(|(path, render)| Some((path.as_ref()?, render)));
        exports
            .map(|(path, render)| {
                Ok(Export {
                    path: path.clone(),
                    aside: Aside::create(path).map_err(export_error(path))?,
                    render,
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// # Errors
    /// [`Error::Export`]; a file that could not be written is as it was.
    pub fn write(self, results: &Results, findings: &[Finding]) -> Result<(), Error> {
        for Export {
            path,
            aside,
            render,
        } in self.0
        {
            fs::write(&aside.0, render(results, findings))
                .and_then(|()| fs::rename(&aside.0, &path))
                .map_err(export_error(&path))?;
        }
        Ok(())
    }
}

fn export_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Export {
        path: path.to_path_buf(),
        source,
    }
}

/// An empty file beside the one to be written; removed when dropped, unless renamed.
struct Aside(PathBuf);

impl Aside {
    fn create(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let aside = path.with_file_name(name);
        fs::File::create(&aside)?;
        Ok(Self(aside))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
