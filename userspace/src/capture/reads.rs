//! The files that the tree reads on its way to the capture point.
//!
//! They are recorded by the names that the processes gave, so that a link which leads elsewhere later is
//! seen to. Files that the tree itself writes to are left out, and those that are gone by the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    fit::{self, Seen},
    store::{Dependency, Identity, ReadFiles, Role},
    tree::HostPid,
    watch::{Opened, Opens, WatchError},
};

/// An index that is made anew when any library is installed, and says nothing of those in use.
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";

/// The files that were read until now.
pub struct Reads {
    opens: Option<Opens>,
    /// Where relative paths begin if the process is gone.
    folder: PathBuf,
    /// By device and inode as the kernel has them; none for what was executed.
    found: BTreeMap<PathBuf, (Option<(u32, u64)>, Identity)>,
    written: BTreeSet<(u32, u64)>,
    unrecorded: u64,
}

impl Reads {
    /// Of a command that is started in a folder.
    pub fn new(opens: Opens, folder: &Path) -> Self {
        Self {
            opens: Some(opens),
            ..Self::none(folder)
        }
    }

    fn none(folder: &Path) -> Self {
        Self {
            opens: None,
            folder: folder.to_owned(),
            found: BTreeMap::new(),
            written: BTreeSet::new(),
            unrecorded: 0,
        }
    }

    /// Waits until there is much to take, and takes it. Can be cancelled.
    pub async fn turn(&mut self) -> Result<(), WatchError> {
        match &mut self.opens {
            Some(opens) => opens.wait().await?,
            None => std::future::pending().await,
        }
        self.take();
        Ok(())
    }

    /// Takes what there is.
    fn take(&mut self) {
        if let Some(mut opens) = self.opens.take() {
            opens.drain(|opened| self.opened(&opened));
            self.opens = Some(opens);
        }
    }

    fn opened(&mut self, opened: &Opened) {
        match opened.is_written {
            true => drop(self.written.insert(opened.file)),
            false if opened.is_cut => self.miss(&opened.path),
            false => self.add(opened.pid, opened.folder, &opened.path, Some(opened.file)),
        }
    }

    /// A program was executed. The kernel reads it, and no process opens it.
    pub fn executed(&mut self, pid: HostPid, path: &Path, is_cut: bool) {
        match is_cut {
            true => self.miss(path),
            false => self.add(pid, None, path, None),
        }
    }

    fn add(&mut self, pid: HostPid, folder: Option<i32>, path: &Path, file: Option<(u32, u64)>) {
        if !fit::is_file_system(path) {
            return;
        }
        let link = |name: String| fs::read_link(format!("/proc/{pid}/{name}")).ok();
        let found = match path.strip_prefix("/") {
            // It may have made another folder its root.
            Ok(below) => {
                regular(path.to_owned()).or_else(|| regular(link("root".to_owned())?.join(below)))
            }
            Err(_) => {
                let begin = folder.map_or("cwd".to_owned(), |fd| format!("fd/{fd}"));
                link(begin)
                    .and_then(|begin| regular(begin.join(path)))
                    .or_else(|| regular(self.folder.join(path)))
            }
        };
        match found {
            Some((path, identity)) => {
                self.found.entry(path).or_insert((file, identity));
            }
            // A temporary file.
            None if path.is_absolute() => {}
            None => self.miss(path),
        }
    }

    /// A file cannot be recorded, of which this much of its path is known.
    fn miss(&mut self, path: &Path) {
        tracing::debug!("not recorded: {}", path.display());
        self.unrecorded += 1;
    }

    /// What was read in all, but for what is known of anyway.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn finish(&mut self) -> Result<Read, WatchError> {
        self.take();
        if let Some(opens) = self.opens.take() {
            self.unrecorded += opens.untold()?;
        }
        let written = &self.written;
        let is_read = |file: &Option<(u32, u64)>| !file.is_some_and(|file| written.contains(&file));
        let found = std::mem::take(&mut self.found).into_iter();
        let files = found
            .filter(|(path, (file, _))| is_read(file) && path != Path::new(LIBRARY_CACHE))
            .map(|(path, (_, identity))| (path, identity));
        Ok(Read {
            files: files.collect(),
            unrecorded: self.unrecorded,
        })
    }
}

/// A regular file that is there, and is not the kernel's.
fn regular(path: PathBuf) -> Option<(PathBuf, Identity)> {
    let metadata = path.metadata().ok().filter(fs::Metadata::is_file)?;
    fit::is_file_system(&path).then(|| (path, Identity::of(&metadata)))
}

/// The files that were read before a freeze, by their names, as they were then.
pub struct Read {
    files: BTreeMap<PathBuf, Identity>,
    unrecorded: u64,
}

impl Read {
    /// Records their content; `known` are recorded already.
    pub fn record(self, known: &[Dependency]) -> ReadFiles {
        let known: BTreeSet<&Path> = known.iter().map(|file| file.path.as_path()).collect();
        let mut files = self.files;
        let sources: Vec<PathBuf> = files.keys().filter_map(|path| source_of(path)).collect();
        for path in sources {
            if let Ok(metadata) = path.metadata()
                && metadata.is_file()
            {
                files.entry(path).or_insert(Identity::of(&metadata));
            }
        }
        let is_news = |(path, _): &(PathBuf, Identity)| !known.contains(path.as_path());
        let seen = files.into_iter().filter(is_news);
        let seen = seen.map(|(path, identity)| Seen {
            path,
            role: Role::Read,
            identity: Some(identity),
        });
        ReadFiles {
            files: fit::identify(seen.collect()),
            unrecorded: self.unrecorded,
        }
    }
}

/// The source of a file that Python has compiled: it looks only at the time of it, and opens the other.
/// See "PEP 3147".
fn source_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_suffix(".pyc")?;
    let folder = path.parent()?;
    if folder.file_name()? != "__pycache__" {
        return None;
    }
    let module = name.split('.').next()?;
    Some(folder.parent()?.join(format!("{module}.py")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path, inode: u64, is_written: bool) -> Opened {
        Opened {
            pid: HostPid(std::process::id() as i32),
            file: (1, inode),
            path: path.to_owned(),
            folder: None,
            is_written,
            is_cut: false,
        }
    }

    #[test]
    fn what_is_written_gone_or_the_kernels_is_no_file_that_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            path
        };
        let (a, log) = (write("a.conf"), write("app.log"));
        let (compiled, source) = (write("__pycache__/m.cpython-311.opt-1.pyc"), write("m.py"));
        let mut reads = Reads::none(folder.path());
        reads.opened(&opened(&a, 1, false));
        reads.opened(&opened(&log, 2, false));
        reads.opened(&opened(&log, 2, true));
        reads.opened(&opened(&compiled, 3, false));
        reads.opened(&opened(&folder.path().join("temporary"), 4, false));
        reads.opened(&opened(Path::new("/proc/self/maps"), 5, false));
        // Where the process is, it is not; where the command was started, it is.
        reads.opened(&opened(Path::new("a.conf"), 1, false));
        reads.opened(&opened(Path::new("b.conf"), 6, false));
        reads.opened(&Opened {
            is_cut: true,
            ..opened(&a, 7, false)
        });
        reads.executed(HostPid(1), Path::new("/bin/sh"), false);
        let read = reads.finish().unwrap();
        assert_eq!(read.unrecorded, 2);
        let recorded = read.record(&[]);
        let paths: Vec<&Path> = recorded.files.iter().map(|file| &*file.path).collect();
        let mut expected = vec![Path::new("/bin/sh"), &*compiled, &*a, &*source];
        expected.sort();
        assert_eq!((paths, recorded.unrecorded), (expected, 2));
        assert!(recorded.files.iter().all(|file| file.blake3.is_some()));
    }

    #[test]
    fn only_compiled_python_has_a_source() {
        let source = |path: &str| source_of(Path::new(path));
        let path = "/srv/__pycache__/app.cpython-311.pyc";
        assert_eq!(source(path), Some("/srv/app.py".into()));
        assert_eq!(source("/srv/app.pyc"), None);
        assert_eq!(source("/srv/app.py"), None);
    }
}
