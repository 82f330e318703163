//! Makes the memory that processes are to share, see `edit/shared.rs`. In init, so that it is the
//! instance's, and counts against its limit.

use std::{fs, io, os::fd::BorrowedFd, path::Path};

use nix::unistd::{Gid, Uid, fchown};
use rustix::fs::{MemfdFlags, Mode, SeekFrom};

use super::{
    super::protocol::{Notice, Step},
    Init, errno_of,
};
use crate::{
    edit::{SHARED_NAME, Shared},
    sys,
};

impl Init<'_> {
    /// Makes what is to hold the memory, empty yet.
    pub(super) fn make_shared(&self) -> Result<(), Notice> {
        let make = |piece: &Shared, number| -> io::Result<()> {
            let file = rustix::fs::memfd_create(SHARED_NAME, MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&file, piece.size)?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(piece.mode))?;
            let owner = (Uid::from_raw(piece.uid), Gid::from_raw(piece.gid));
            fchown(&file, Some(owner.0), Some(owner.1))?;
            sys::keep_as(file, number)
        };
        let mut pieces = self.plan.shared.iter().zip(self.plan.shared());
        pieces.try_for_each(|((_, piece), number)| make(piece, number).map_err(failed))
    }

    /// Brings the content.
    pub(super) fn fill_shared(&self) -> Result<(), Notice> {
        let mut pieces = self.plan.shared.iter().zip(self.plan.shared());
        pieces.try_for_each(|((pages, piece), number)| {
            fill(pages, piece, sys::permanent(number)).map_err(failed)
        })
    }
}

fn failed(error: io::Error) -> Notice {
    Notice::Failed {
        step: Step::Shared,
        errno: errno_of(&error),
    }
}

fn fill(pages: &Path, piece: &Shared, memory: BorrowedFd<'_>) -> io::Result<()> {
    let pages = fs::File::open(pages)?;
    let mut from: u64 = 0;
    for &(offset, len) in &piece.runs {
        rustix::fs::seek(memory, SeekFrom::Start(offset))?;
        let end = from.saturating_add(len);
        while from < end {
            let left = (end - from) as usize;
            match rustix::fs::sendfile(memory, &pages, Some(&mut from), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}
