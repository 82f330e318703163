//! Puts anonymous memory in place of mapped memory.

use std::{collections::BTreeSet, fs, io, os::unix::fs::FileExt as _};

use super::{
    Counters, GuardError, is_gone,
    mappings::Mapping,
    page_size,
    tracee::{Caller, Seized, Stopped, TraceError},
};
use crate::{edit::Traits, sys};

/// Memory that nothing was ever written to.
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// A mapping, or a piece of one.
#[derive(Clone, Debug)]
pub struct Piece {
    start: u64,
    end: u64,
    protection: i32,
    is_unreserved: bool,
    /// What it was told by madvise(2), each a bit.
    advice: u64,
}

impl Piece {
    /// The part of a mapping that lies in a range.
    pub fn of(mapping: &Mapping, range: (u64, u64), traits: Option<&Traits>) -> Self {
        Self {
            start: mapping.start.max(range.0),
            end: mapping.end.min(range.1),
            protection: mapping.protection,
            is_unreserved: traits.is_some_and(|traits| traits.is_unreserved),
            advice: traits.map_or(0, |traits| traits.advice),
        }
    }

    /// Whether it is a part of a mapping only.
    pub fn cuts(&self, mapping: &Mapping) -> bool {
        (self.start, self.end) != (mapping.start, mapping.end)
    }

    /// Whether it was told this by madvise(2) before its capture.
    pub fn was_told(&self, advice: i32) -> bool {
        self.advice >> advice & 1 == 1
    }

    fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// What is to be replaced.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// By memory of zeros: the content is about to be thrown away.
    Fresh(Vec<Piece>),
    /// By copies, each of pieces that follow each other and become one.
    Copies(Vec<Vec<Piece>>),
}

impl Replacement {
    /// By a copy of each piece.
    pub fn each(pieces: Vec<Piece>) -> Self {
        Self::Copies(pieces.into_iter().map(|piece| vec![piece]).collect())
    }

    /// Replaces it by way of a stopped thread, and lets that begin its system call anew.
    ///
    /// # Errors
    /// See [`GuardError`]: the memory is not what it should be then.
    pub fn carry_out(
        &self,
        thread: Stopped,
        behind: u64,
        counters: &mut Counters,
    ) -> Result<(), GuardError> {
        let others = self.stop_others(thread.tid())?;
        let mut caller = Caller::new(thread, behind)?;
        match self.carry_out_by(&mut caller, counters)? {
            true => caller.restart()?,
            false => caller.fail(libc::ENOMEM)?,
        }
        drop(others);
        Ok(())
    }

    /// Stops all that must not use the memory meanwhile.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub fn stop_others(&self, tid: i32) -> Result<Vec<Stopped>, GuardError> {
        match self {
            Self::Fresh(_) => Ok(vec![]),
            Self::Copies(_) => stop_others(tid),
        }
    }

    /// Replaces it. Returns false if there is no memory for that.
    ///
    /// # Errors
    /// As [`carry_out`](Self::carry_out).
    pub fn carry_out_by(
        &self,
        caller: &mut Caller,
        counters: &mut Counters,
    ) -> Result<bool, GuardError> {
        let tid = caller.tid();
        match self {
            Self::Fresh(pieces) => {
                for piece in pieces {
                    match map(caller, piece, piece.start, piece.len()) {
                        // There are too many mappings.
                        Err(TraceError::Call { .. }) => zero(tid, piece)?,
                        mapped => drop(mapped?),
                    }
                    advise(caller, piece)?;
                    counters.fresh += 1;
                    counters.fresh_bytes += piece.len();
                }
            }
            Self::Copies(runs) => {
                for run in runs {
                    if !copy(caller, tid, run)? {
                        return Ok(false);
                    }
                    counters.copied += 1;
                    counters.copied_bytes += run.iter().map(Piece::len).sum::<u64>();
                }
            }
        }
        Ok(true)
    }

    /// The same without a thread that could do it, if it can be done; then the call is not needed
    /// any more.
    ///
    /// # Errors
    /// As [`carry_out`](Self::carry_out).
    pub fn carry_out_from_outside(&self, tid: i32) -> Result<bool, GuardError> {
        match self {
            Self::Fresh(pieces) => {
                pieces.iter().try_for_each(|piece| zero(tid, piece))?;
                Ok(true)
            }
            Self::Copies(_) => Ok(false),
        }
    }
}

/// Maps fresh memory like a piece.
fn map(caller: &mut Caller, like: &Piece, start: u64, len: u64) -> Result<u64, TraceError> {
    let unreserved = match like.is_unreserved {
        true => libc::MAP_NORESERVE,
        false => 0,
    };
    let flags = (ANONYMOUS | libc::MAP_FIXED | unreserved) as u64;
    let arguments = [start, len, like.protection as u64, flags, u64::MAX, 0];
    caller.call("map fresh memory", libc::SYS_mmap, arguments)
}

/// Tells fresh memory what its predecessor was told.
fn advise(caller: &mut Caller, piece: &Piece) -> Result<(), TraceError> {
    for advice in (0..u64::BITS).filter(|bit| piece.advice >> bit & 1 == 1) {
        let arguments = [piece.start, piece.len(), advice.into(), 0, 0, 0];
        caller.call("advise on memory", libc::SYS_madvise, arguments)?;
    }
    Ok(())
}

/// Replaces a run by a copy of itself. Returns false if there is no memory for that, and nothing
/// has been done.
fn copy(caller: &mut Caller, tid: i32, run: &[Piece]) -> Result<bool, GuardError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Ok(true);
    };
    let len = last.end - first.start;
    let flags = (ANONYMOUS | libc::MAP_NORESERVE) as u64;
    let arguments = [0, len, libc::PROT_NONE as u64, flags, u64::MAX, 0];
    let aside = match caller.call("reserve memory", libc::SYS_mmap, arguments) {
        Err(TraceError::Call { .. }) => return Ok(false),
        aside => aside?,
    };
    for piece in run {
        // There is memory at the old place all the time: the thread's own stack may be among it, and
        // there the kernel writes to its rseq(2) area each time it goes on, or kills it.
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let flags = flags as u64;
        let to = aside + piece.start - first.start;
        let arguments = [piece.start, piece.len(), piece.len(), flags, to, 0];
        caller.call("move memory", libc::SYS_mremap, arguments)?;
    }
    map(caller, first, first.start, len)?;
    let copied = transfer(tid, aside, first.start, len);
    copied.map_err(|source| GuardError::Memory { pid: tid, source })?;
    let arguments = [aside, len, 0, 0, 0, 0];
    caller.call("unmap memory", libc::SYS_munmap, arguments)?;
    run.iter().try_for_each(|piece| advise(caller, piece))?;
    Ok(true)
}

/// Copies memory within a process, but for pages of zeros.
fn transfer(tid: i32, from: u64, to: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let memory = memory_of(tid)?;
    let page = page_size() as usize;
    let mut buffer = vec![0; CHUNK as usize];
    for offset in (0..len).step_by(CHUNK as usize) {
        let chunk = &mut buffer[..CHUNK.min(len - offset) as usize];
        memory.read_exact_at(chunk, from + offset)?;
        // All that lies between two pages of zeros at once.
        let is_zero = |page: &[u8]| page.iter().all(|&byte| byte == 0);
        let pages: Vec<&[u8]> = chunk.chunks(page).collect();
        let mut at = 0;
        for same in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len = same.iter().map(|page| page.len()).sum::<usize>();
            if !is_zero(same[0]) {
                memory.write_all_at(&chunk[at..at + len], to + offset + at as u64)?;
            }
            at += len;
        }
    }
    Ok(())
}

/// Writes zeros to a piece.
fn zero(tid: i32, piece: &Piece) -> Result<(), GuardError> {
    let zeros = vec![0; page_size() as usize];
    let write = || -> io::Result<()> {
        let memory = memory_of(tid)?;
        (piece.start..piece.end)
            .step_by(zeros.len())
            .try_for_each(|address| memory.write_all_at(&zeros, address))
    };
    write().map_err(|source| GuardError::Memory { pid: tid, source })
}

pub(super) fn memory_of(tid: i32) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .open(format!("/proc/{tid}/mem"))
}

/// Stops all that share the memory of a thread.
fn stop_others(tid: i32) -> Result<Vec<Stopped>, GuardError> {
    let fail = |source| GuardError::Mappings { pid: tid, source };
    let mut stopped = Vec::new();
    let mut known = BTreeSet::from([tid]);
    loop {
        let new: Vec<i32> = sharers(tid)
            .map_err(fail)?
            .into_iter()
            .filter(|other| known.insert(*other))
            .collect();
        if new.is_empty() {
            return Ok(stopped);
        }
        // All are told before the first is waited for.
        let seized: Vec<_> = new.into_iter().map(Seized::new).collect();
        for thread in seized {
            match thread.and_then(Seized::stopped) {
                Err(TraceError::Gone(_)) => {}
                thread => stopped.push(thread?),
            }
        }
    }
}

/// The threads of a process, and those of others with the same memory, as a child in vfork(2).
fn sharers(tid: i32) -> io::Result<Vec<i32>> {
    let numbers = |folder: &str| -> io::Result<Vec<i32>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if is_gone(&error) => return Ok(vec![]),
            entries => entries?,
        };
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
        Ok(entries.flatten().filter_map(number).collect())
    };
    let mut found = numbers(&format!("/proc/{tid}/task"))?;
    for pid in numbers("/proc")? {
        if !found.contains(&pid) && sys::share_memory(tid, pid) {
            found.extend(numbers(&format!("/proc/{pid}/task"))?);
        }
    }
    Ok(found)
}
