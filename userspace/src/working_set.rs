//! The pages that a restored server needs for its first responses, found by a rehearsal: it is
//! restored with mapped memory, asked, and then it is seen which pages it has touched.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use crate::{
    edit::Run,
    tree::{self, HostPid, NsPid},
};

/// What of the memory of an image is needed first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// How many pages were touched.
    pub touched_pages: u64,
    /// How many of them were written to. They are copied by a restore that maps the rest: a page
    /// that is copied when it is written to costs more.
    pub written_pages: u64,
    /// By the names of the files that memory is mapped from: the parts with those that were touched
    /// only, each as its place and its length in bytes. They are read ahead, as one batch.
    pub parts: BTreeMap<String, Vec<(u64, u64)>>,
}

/// What processes have touched of memory that is mapped from the files in a folder.
#[derive(Debug, Default)]
pub struct Touched {
    pub set: WorkingSet,
    /// The pages that were written to, by the pid in the image and in the order of addresses.
    pub written: BTreeMap<NsPid, Vec<Run>>,
}

/// Parts of a file that are nearer to each other than this, in bytes, are read as one.
const GAP: u64 = 64 << 10;

/// Looks at all processes below an init.
///
/// # Errors
/// What reading /proc says; what is gone is not counted.
pub fn observe(init: HostPid, folder: &Path) -> io::Result<Touched> {
    let mut touched = Touched::default();
    for pid in tree::descendants(init) {
        if let Some(own) = tree::ns_pid(pid) {
            observe_process(pid, own, folder, &mut touched)?;
        }
    }
    for parts in touched.set.parts.values_mut() {
        parts.sort_unstable();
        *parts = join(parts);
    }
    Ok(touched)
}

fn observe_process(
    pid: HostPid,
    own: NsPid,
    folder: &Path,
    touched: &mut Touched,
) -> io::Result<()> {
    /// Of an entry of /proc/PID/pagemap: the page is there, and it is one of a file.
    const PRESENT: u64 = 1 << 63;
    const OF_FILE: u64 = 1 << 61;
    let page = rustix::param::page_size() as u64;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    for mapping in maps.lines().filter_map(|line| parse(line, folder)) {
        let mut bytes = vec![0; ((mapping.end - mapping.start) / page * 8) as usize];
        pagemap.read_exact_at(&mut bytes, mapping.start / page * 8)?;
        let (entries, _) = bytes.as_chunks::<8>();
        let addresses = (mapping.start..mapping.end).step_by(page as usize);
        for (entry, address) in entries.iter().zip(addresses) {
            let entry = u64::from_ne_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            touched.set.touched_pages += 1;
            if entry & OF_FILE == 0 {
                touched.set.written_pages += 1;
                Run::add_page(touched.written.entry(own).or_default(), address);
            } else {
                let place = mapping.offset + address - mapping.start;
                let parts = touched.set.parts.entry(mapping.file.clone()).or_default();
                parts.push((place, page));
            }
        }
    }
    Ok(())
}

struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    file: String,
}

/// A line of /proc/PID/maps, if it is of a file in the folder.
fn parse(line: &str, folder: &Path) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let offset = words.nth(1)?;
    let path = PathBuf::from(words.nth(2)?.trim_start());
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: number(start)?,
        end: number(end)?,
        offset: number(offset)?,
        file: path.strip_prefix(folder).ok()?.to_str()?.to_owned(),
    })
}

/// Parts that are near each other become one.
fn join(parts: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(place, len) in parts {
        match joined.last_mut() {
            Some((first, length)) if place <= *first + *length + GAP => {
                *length = (*length).max(place + len - *first);
            }
            _ => joined.push((place, len)),
        }
    }
    joined
}

impl WorkingSet {
    /// Has the kernel read what is needed of the files in a folder, unless it is in memory already.
    pub fn read_ahead(&self, folder: &Path) {
        for (name, parts) in &self.parts {
            let Ok(file) = fs::File::open(folder.join(name)) else {
                continue;
            };
            // One page tells: files are forgotten as a whole, or by what is not used.
            if parts
                .iter()
                .take(1)
                .all(|&(place, _)| is_cached(&file, place))
            {
                continue;
            }
            for &(place, len) in parts {
                let len = std::num::NonZero::new(len);
                let _ = fadvise(&file, place, len, Advice::WillNeed);
            }
        }
    }
}

/// Whether a byte of a file can be read without waiting for the disk.
fn is_cached(file: &fs::File, place: u64) -> bool {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut byte = [0];
    let buffers = &mut [io::IoSliceMut::new(&mut byte)];
    preadv2(file, buffers, place, ReadWriteFlags::NOWAIT) == Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_of_the_folder_are_looked_at() {
        let line = "7f00-8f00 r--p 00003000 fe:01 12      /a b/criu/pages-1.img";
        let mapping = parse(line, Path::new("/a b/criu")).unwrap();
        assert_eq!(
            (mapping.start, mapping.end, mapping.offset),
            (0x7f00, 0x8f00, 0x3000)
        );
        assert_eq!(mapping.file, "pages-1.img");
        assert!(parse(line, Path::new("/b")).is_none());
        assert!(parse("7f00-8f00 rw-p 00000000 00:00 0", Path::new("/")).is_none());
    }

    #[test]
    fn parts_near_each_other_are_one() {
        let parts = [(0, 4096), (4096, 4096), (4096 + GAP, 4096), (1 << 20, 4096)];
        assert_eq!(join(&parts), [(0, 8192 + GAP), (1 << 20, 4096)]);
    }
}
