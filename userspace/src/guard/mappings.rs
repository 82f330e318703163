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

/// What a mapping was told by madvise(2) and the like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// What to tell another one, to be like it.
    pub advice: Vec<i32>,
    pub is_locked: bool,
    pub is_unreserved: bool,
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

    /// What the mappings in a range were told, in the order of [`within`](Self::within).
    ///
    /// # Errors
    /// What reading it says.
    pub fn advice(&self, (start, end): (u64, u64)) -> io::Result<Vec<Advice>> {
        let smaps = fs::File::open(format!("/proc/{}/smaps", self.pid))?;
        let mut found = Vec::new();
        let mut is_within = false;
        for line in BufReader::new(smaps).lines() {
            let line = line?;
            if let Some(mapping) = parse(&line) {
                if mapping.start >= end {
                    break;
                }
                is_within = mapping.end > start;
            } else if is_within && let Some(flags) = line.strip_prefix("VmFlags:") {
                found.push(advice(flags));
            }
        }
        Ok(found)
    }
}

/// The heading of a mapping in maps or smaps, see proc_pid_maps(5).
fn parse(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let (major, minor) = words.nth(1)?.split_once(':')?;
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let protection = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)];
    let allowed = protection.iter().filter(|(letter, _)| permissions.contains(*letter));
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

/// From the flags of smaps, see proc_pid_smaps(5).
fn advice(flags: &str) -> Advice {
    let mut advice = Advice::default();
    for flag in flags.split_ascii_whitespace() {
        match flag {
            "dc" => advice.advice.push(libc::MADV_DONTFORK),
            "dd" => advice.advice.push(libc::MADV_DONTDUMP),
            "hg" => advice.advice.push(libc::MADV_HUGEPAGE),
            "nh" => advice.advice.push(libc::MADV_NOHUGEPAGE),
            "mg" => advice.advice.push(libc::MADV_MERGEABLE),
            "sr" => advice.advice.push(libc::MADV_SEQUENTIAL),
            "rr" => advice.advice.push(libc::MADV_RANDOM),
            "lo" => advice.is_locked = true,
            "nr" => advice.is_unreserved = true,
            _ => {}
        }
    }
    advice
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

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
        assert_eq!(asked.within(range).unwrap().len(), 2.min(asked.within(range).unwrap().len()));
        assert_eq!(read.advice((own.start, own.end)).unwrap().len(), 1);
        assert!(asked.maps.as_raw_fd() > 2);
    }

    #[test]
    fn a_heading_is_parsed() {
        let line = "7f00-8f00 rw-p 00001000 fe:1a 4711                       /a b";
        let mapping = parse(line).unwrap();
        assert_eq!((mapping.start, mapping.end), (0x7f00, 0x8f00));
        assert_eq!(mapping.protection, libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!((mapping.file.device, mapping.file.inode), ((0xfe, 0x1a), 4711));
        assert!(!mapping.is_shared);
        assert_eq!(parse("Rss:          4 kB"), None);
    }

    #[test]
    fn flags_become_advice() {
        let flags = advice(" rd wr mr mw me lo ac dd nh");
        assert_eq!(flags.advice, [libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE]);
        assert!(flags.is_locked && !flags.is_unreserved);
    }
}
