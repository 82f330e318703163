//! Opens the files that processes of the tree had mapped, or wrote.
//!
//! Their names come from others, and what is there now may be something else: nothing but a regular
//! file is opened, so that nobody waits for a pipe.

use std::{
    fs::File,
    io::{Cursor, Read, Seek},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
};

use object::ReadCache;

/// Something to read ELF from, a part at a time.
pub type Contents = ReadCache<Box<dyn Source>>;

pub trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// What the kernel maps into each process, under this name.
pub const VDSO: &str = "[vdso]";

/// Opens a regular file.
pub fn open(path: &str) -> Option<File> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// All of a file, unless it is larger than this.
pub fn read(file: File, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= limit).then_some(bytes)
}

/// What was mapped under this name.
pub fn contents(path: &str) -> Option<Contents> {
    let source: Box<dyn Source> = if path == VDSO {
        Box::new(Cursor::new(vdso()?))
    } else {
        Box::new(open(path)?)
    };
    Some(ReadCache::new(source))
}

/// A copy of this process's own, which is the same as that of every other of the same word size.
fn vdso() -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(VDSO))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let mut bytes = vec![0; end.checked_sub(start)? as usize];
    let memory = File::open("/proc/self/mem").ok()?;
    memory.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}
