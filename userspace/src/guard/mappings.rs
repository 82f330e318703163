//! The mappings of a process, as /proc tells of them.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    os::fd::AsFd as _,
};

use crate::sys::{self, MapQuery};

/// A file, as the mappings of it show it: not all file systems show the device of stat(2) there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    device: (u32, u32),
    inode: u64,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// `PROT_*` of mmap(2).
    pub protection: i32,
    pub is_shared: bool,
    pub file: FileId,
}

impl Mapping {
    pub fn is_anonymous(&self) -> bool {
        self.file == FileId::default()
    }
}

/// Looks up the mappings of a process.
pub struct Mappings {
    maps: fs::File,
    pid: i32,
    /// The kernel answers for single addresses.
    can_query: bool,
}

impl Mappings {
    /// # Errors
    /// What open(2) says.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            maps: fs::File::open(format!("/proc/{pid}/maps"))?,
            pid,
            can_query: true,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The mapping at an address, or the first behind it.
    ///
    /// # Errors
    /// What reading it says.
    pub fn at_or_behind(&mut self, address: u64) -> io::Result<Option<Mapping>> {
        /// Of linux/fs.h.
        const COVERING_OR_NEXT_VMA: u64 = 0x10;
        const SHARED: u64 = 8;
        if self.can_query {
            let query = MapQuery {
                query_flags: COVERING_OR_NEXT_VMA,
                query_addr: address,
                ..MapQuery::default()
            };
            match sys::query_map(self.maps.as_fd(), query) {
                Ok(found) => {
                    return Ok(Some(Mapping {
                        start: found.vma_start,
                        end: found.vma_end,
                        // The lowest bits are the same.
                        protection: (found.vma_flags & 7) as i32,
                        is_shared: found.vma_flags & SHARED != 0,
                        file: FileId {
                            device: (found.dev_major, found.dev_minor),
                            inode: found.inode,
                        },
                    }));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => self.can_query = false,
                Err(error) => return Err(error),
            }
        }
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        let mut mappings = text.lines().filter_map(parse);
        Ok(mappings.find(|mapping| mapping.end > address))
    }

    /// All mappings that have a part in a range.
    ///
    /// # Errors
    /// What reading them says.
    pub fn within(&mut self, (start, end): (u64, u64)) -> io::Result<Vec<Mapping>> {
        let mut found = Vec::new();
        let mut at = start;
        while at < end
            && let Some(mapping) = self.at_or_behind(at)?
            && mapping.start < end
        {
            at = mapping.end;
            found.push(mapping);
        }
        Ok(found)
    }

    /// The first mapping in a range that is locked.
    ///
    /// # Errors
    /// What reading them says.
    pub fn first_locked(&self, (start, end): (u64, u64)) -> io::Result<Option<u64>> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        if locked.is_none_or(|size| size.trim() == "0 kB") {
            return Ok(None);
        }
        // Slow, as the kernel counts the pages of each mapping.
        let smaps = fs::File::open(format!("/proc/{}/smaps", self.pid))?;
        let mut mapping = None;
        for line in BufReader::new(smaps).lines() {
            let line = line?;
            if let Some(heading) = parse(&line) {
                if heading.start >= end {
                    break;
                }
                mapping = Some(heading).filter(|heading| heading.end > start);
            } else if let Some(flags) = line.strip_prefix("VmFlags:")
                && flags.split_ascii_whitespace().any(|flag| flag == "lo")
                && let Some(mapping) = mapping
            {
                return Ok(Some(mapping.start));
            }
        }
        Ok(None)
    }
}

/// The heading of a mapping in maps or smaps, see proc_pid_maps(5).
pub(crate) fn parse(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let (major, minor) = words.nth(1)?.split_once(':')?;
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let protection = [
        ('r', libc::PROT_READ),
        ('w', libc::PROT_WRITE),
        ('x', libc::PROT_EXEC),
    ];
    let allowed = protection
        .iter()
        .filter(|(letter, _)| permissions.contains(*letter));
    Some(Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        protection: allowed.fold(0, |all, (_, bit)| all | bit),
        is_shared: permissions.ends_with('s'),
        file: FileId {
            device: (hexadecimal(major)? as u32, hexadecimal(minor)? as u32),
            inode: words.next()?.parse().ok()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_looking_tell_the_same() {
        let pid = std::process::id() as i32;
        let mut asked = Mappings::of(pid).unwrap();
        let mut read = Mappings::of(pid).unwrap();
        read.can_query = false;
        let code = both_ways_of_looking_tell_the_same as fn() as usize as u64;
        let own = asked.at_or_behind(code).unwrap().unwrap();
        assert_eq!(read.at_or_behind(code).unwrap(), Some(own));
        assert!(own.start <= code && code < own.end && !own.is_anonymous());
        assert_eq!(own.protection, libc::PROT_READ | libc::PROT_EXEC);
        let range = (own.start, own.end + 1);
        assert_eq!(asked.within(range).unwrap(), read.within(range).unwrap());
        assert_eq!(asked.first_locked(range).unwrap(), None);
    }

    #[test]
    fn a_heading_is_parsed() {
        let line = "7f00-8f00 rw-p 00001000 fe:1a 4711                       /a b";
        let mapping = parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f00, 0x8f00));
        assert_eq!(mapping.protection, libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(
            (mapping.file.device, mapping.file.inode),
            ((0xfe, 0x1a), 4711)
        );
        assert!(!mapping.is_shared);
        assert_eq!(parse("Rss:          4 kB"), None);
    }
}
