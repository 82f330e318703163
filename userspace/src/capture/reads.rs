//! The files that the tree reads on its way to the capture point.
//!
//! They are recorded by the names that the processes gave, so that a link which leads elsewhere later is
//! seen to. Files that the tree itself writes to are left out, and those that are gone by the time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    fit::{self, Seen},
    store::{Dependency, Identity, ReadFiles, Role},
    tree::HostPid,
    watch::{FileId, Opened, Opens, WatchError},
};

/// An index that is made anew when any library is installed, and says nothing of those in use.
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";

/// The files that were read until now.
pub struct Reads {
    opens: Option<Opens>,
    /// Where relative paths begin if the process is gone.
    folder: PathBuf,
    /// By device and inode as the kernel has them; none for what was executed.
    found: BTreeMap<PathBuf, (Option<FileId>, Identity)>,
    written: BTreeSet<FileId>,
    /// By their paths, as one may be made anew.
    made: BTreeSet<PathBuf>,
    /// The folders that were opened.
    folders: HashMap<FileId, PathBuf>,
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
            made: BTreeSet::new(),
            folders: HashMap::new(),
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
        let begin = match (self.folders.get(&opened.folder), opened.folder_fd) {
            (Some(path), _) => Begin::Known(path.clone()),
            (None, Some(fd)) => Begin::Link(format!("fd/{fd}")),
            (None, None) => Begin::Link("cwd".to_owned()),
        };
        if opened.is_folder {
            let path = match begin {
                _ if opened.path.is_absolute() => Some(opened.path.clone()),
                Begin::Known(folder) => Some(folder.join(&opened.path)),
                Begin::Link(name) => Some(link(opened.pid, &name).join(&opened.path)),
            };
            let path = path.filter(|path| !opened.is_cut && path.is_absolute());
            self.folders.extend(path.map(|path| (opened.file, path)));
        } else if opened.is_written {
            self.written.insert(opened.file);
            // One that was read before it was made anew is none of before, either.
            let (found, _) = self.resolve(opened.pid, begin, &opened.path);
            self.made.extend(found.map(|(path, _)| path));
        } else if opened.is_cut {
            self.miss(&opened.path);
        } else {
            self.add(opened.pid, begin, &opened.path, Some(opened.file));
        }
    }

    /// A program was executed. The kernel reads it, and no process opens it.
    pub fn executed(&mut self, pid: HostPid, path: &Path, is_cut: bool) {
        match is_cut {
            true => self.miss(path),
            false => self.add(pid, Begin::Link("cwd".to_owned()), path, None),
        }
    }

    fn add(&mut self, pid: HostPid, begin: Begin, path: &Path, file: Option<FileId>) {
        match self.resolve(pid, begin, path) {
            // The record is of texts.
            (Some((path, _)), _) if path.to_str().is_none() => self.miss(&path),
            (Some((path, identity)), _) => {
                self.found.entry(path).or_insert((file, identity));
            }
            // A temporary file, or one of the kernel's.
            (None, true) => {}
            (None, false) => self.miss(path),
        }
    }

    /// The file at a path, if it is there, and whether it would be found for sure.
    fn resolve(&self, pid: HostPid, begin: Begin, path: &Path) -> (Option<Found>, bool) {
        match (path.strip_prefix("/"), begin) {
            _ if !fit::is_file_system(path) => (None, true),
            // It may have made another folder its root.
            (Ok(below), _) => {
                let found = regular(path.to_owned());
                let found = found.or_else(|| regular(link(pid, "root").join(below)));
                (found, true)
            }
            (Err(_), Begin::Known(folder)) => (regular(folder.join(path)), true),
            (Err(_), Begin::Link(name)) => {
                let found = regular(link(pid, &name).join(path));
                (found.or_else(|| regular(self.folder.join(path))), false)
            }
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
        let is_made = |path: &PathBuf, file: &Option<FileId>| {
            self.made.contains(path) || file.is_some_and(|file| self.written.contains(&file))
        };
        let found = std::mem::take(&mut self.found).into_iter();
        let files = found
            .filter(|(path, (file, _))| !is_made(path, file) && path != Path::new(LIBRARY_CACHE))
            .map(|(path, (_, identity))| (path, identity));
        Ok(Read {
            files: files.collect(),
            unrecorded: self.unrecorded,
        })
    }
}

/// A file, as it is now.
type Found = (PathBuf, Identity);

/// Where a relative path begins.
enum Begin {
    Known(PathBuf),
    /// What a link below /proc/PID leads to.
    Link(String),
}

/// What a link below /proc/PID leads to; nothing if the process is gone.
fn link(pid: HostPid, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

/// A regular file that is there, and is not the kernel's.
fn regular(path: PathBuf) -> Option<Found> {
    // What begins nowhere would begin where we are.
    let metadata = path.is_absolute().then(|| path.metadata().ok()).flatten();
    let metadata = metadata.filter(fs::Metadata::is_file)?;
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
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    fn opened(path: &Path, inode: u64, is_written: bool) -> Opened {
        Opened {
            pid: HostPid(std::process::id() as i32),
            file: (1, inode),
            path: path.to_owned(),
            folder: (1, 0),
            folder_fd: None,
            is_folder: false,
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
        let anew = write("anew.pid");
        reads.opened(&opened(&anew, 30, false));
        reads.opened(&opened(&anew, 31, true));
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
        // Below folders that were opened, the second by its name in the first; and elsewhere.
        let below = write("conf.d/c.conf");
        let in_folder = |folder, path: &str, inode| Opened {
            folder: (1, folder),
            folder_fd: Some(-1),
            ..opened(Path::new(path), inode, false)
        };
        for folder in [
            opened(folder.path(), 20, false),
            in_folder(20, "conf.d", 21),
        ] {
            reads.opened(&Opened {
                is_folder: true,
                ..folder
            });
        }
        reads.opened(&in_folder(21, "c.conf", 8));
        reads.opened(&in_folder(21, "gone.conf", 9));
        reads.opened(&in_folder(99, "d.conf", 10));
        let odd = folder.path().join(OsStr::from_bytes(b"odd-\xff"));
        fs::write(&odd, "").unwrap();
        reads.opened(&opened(&odd, 11, false));
        reads.executed(HostPid(1), Path::new("/bin/sh"), false);
        let read = reads.finish().unwrap();
        assert_eq!(read.unrecorded, 4);
        let recorded = read.record(&[]);
        let paths: Vec<&Path> = recorded.files.iter().map(|file| &*file.path).collect();
        let mut expected = vec![Path::new("/bin/sh"), &*compiled, &*a, &*source, &*below];
        expected.sort();
        assert_eq!((paths, recorded.unrecorded), (expected, 4));
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
