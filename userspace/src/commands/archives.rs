//! `warmimg export` and `import`

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, IsTerminal as _, Read},
    os::fd::AsFd as _,
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::open_store;
use crate::{
    archive::{self, ArchiveError, Exported, Import, Interruption},
    aside::{Aside, is_device},
    cli, encryption,
    error::Error,
    report::Report,
    store::Stored,
};

/// Stands for standard output or input.
const STANDARD: &str = "-";

/// An archive holds memory: it is for its owner alone.
const PRIVATE: u32 = 0o600;

pub fn export(global: &cli::Global, arguments: &cli::Export, report: &Report) -> Result<u8, Error> {
    let path = arguments.output.as_path();
    let is_standard = path == Path::new(STANDARD);
    if is_standard && io::stdout().is_terminal() {
        return Err(Error::Terminal);
    }
    if is_standard && global.json {
        return Err(Error::JsonWithArchive);
    }
    let image = open_store(global)?.pick(arguments.image.as_deref())?;
    let _held = image.hold()?;
    let total = match &image {
        Stored::Plain(image) => image.manifest.image_bytes(),
        Stored::Encrypted(encrypted) => encrypted.header.bytes,
    };
    let line = report.transfer("exporting");
    let mut progress = |done| line.show_transfer(total, done);
    let failed = |source| Error::Export {
        path: path.to_owned(),
        source,
    };
    let name_the_file = |error| match error {
        ArchiveError::Write(source) => failed(source),
        other => other.into(),
    };
    if is_standard {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = File::from(stdout.map_err(Error::Output)?);
        write(&image, stdout, &mut progress)?;
        return Ok(0);
    }
    let exported = if is_device(path) {
        let device = OpenOptions::new().write(true).open(path);
        let device = device.map_err(failed)?;
        if device.is_terminal() {
            return Err(Error::Terminal);
        }
        write(&image, device, &mut progress).map_err(name_the_file)?
    } else {
        let mut aside = Aside::create(path, PRIVATE).map_err(failed)?;
        let exported = write(&image, aside.file(), &mut progress);
        let exported = exported.map_err(name_the_file)?;
        aside.commit_synced().map_err(failed)?;
        exported
    };
    line.clear();
    report.exported(&image, &exported, path)?;
    Ok(0)
}

/// An image that is encrypted is written as it is.
fn write(
    image: &Stored,
    to: impl io::Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Exported, ArchiveError> {
    match image {
        Stored::Plain(image) => archive::export(image, to, progress),
        Stored::Encrypted(encrypted) => encryption::export(encrypted, to, progress),
    }
}

pub fn import(global: &cli::Global, arguments: &cli::Import, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let (path, is_standard) = match arguments.file == Path::new(STANDARD) {
        true => (Path::new("standard input"), true),
        false => (arguments.file.as_path(), false),
    };
    let failed = |source| Error::Import {
        path: path.to_owned(),
        source,
    };
    let file = match is_standard {
        true if io::stdin().is_terminal() => return Err(Error::Terminal),
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(path),
    };
    let file = file.map_err(failed)?;
    if file.metadata().is_ok_and(|found| found.is_dir()) {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let mut source = BufReader::new(Interruptible::new(file).map_err(failed)?);
    let is_encrypted = encryption::is_encrypted(&mut source);
    let is_encrypted = is_encrypted.map_err(|error| match archive::is_interruption(&error) {
        true => ArchiveError::Interrupted.into(),
        false => failed(error),
    })?;
    let line = report.transfer("importing");
    let progress = &mut |total, done| line.show_transfer(total, done);
    let name = arguments.name.as_deref();
    let most_bytes = match arguments.max_size {
        Some(bytes) => bytes,
        None => free_bytes(store.root()).map_err(failed)?,
    };
    let imported = if is_encrypted {
        let keys = arguments.keys.read()?;
        let from = (&mut source, path);
        encryption::import(&store, from, name, most_bytes, &keys, progress)?
    } else {
        let import = Import {
            store: &store,
            path,
            name,
            most_bytes,
            resume: arguments.resume,
            progress,
        };
        import.run(&mut source)?
    };
    if is_standard {
        // Who writes to us must not be told that nobody reads.
        let _ = io::copy(&mut source, &mut io::sink());
    }
    line.clear();
    report.imported(&imported)?;
    Ok(0)
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A file, pipe or socket; to read from it fails with [`Interruption`] once a signal asks for an
/// end.
struct Interruptible {
    file: File,
    signals: SignalFd,
}

impl Interruptible {
    fn new(file: File) -> io::Result<Self> {
        let mut asking = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            asking.add(signal);
        }
        asking.thread_block()?;
        let signals = SignalFd::with_flags(&asking, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { file, signals })
    }
}

impl Read for Interruptible {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut both = [
            PollFd::new(self.file.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut both, PollTimeout::NONE)?;
        match both[1].any() {
            Some(true) => Err(io::Error::other(Interruption)),
            _ => self.file.read(bytes),
        }
    }
}
