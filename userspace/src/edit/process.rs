//! The memory of a process in an image: its mappings, and where its pages are.

use std::{
    fs, io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{
    EditError,
    image::{Image, Kind},
    memory::Traits,
    mm_entry, pagemap_entry, pagemap_head, vma_entry,
    wire::{Field, Message, Value},
};

/// A region has at least so many pages: fewer are copied faster than they are mapped and touched.
const SMALLEST_REGION: u64 = 16;

/// Pages nearer to each other than this are of one region. What lies between them is copied as
/// zeros by a restore that does not map, so it must stay little.
const WIDEST_GAP: u64 = 4;

/// No process has memory above (Documentation/arch/x86/x86_64/5level-paging.rst), but for the
/// page of vsyscall.
const HIGHEST: u64 = 1 << 56;

/// Pages that follow each other in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub address: u64,
    pub pages: u64,
}

impl Run {
    /// Adds a page behind the last of some runs.
    pub fn add_page(runs: &mut Vec<Self>, address: u64) {
        match runs.last_mut() {
            Some(last) if last.end() == address => last.pages += 1,
            _ => runs.push(Self { address, pages: 1 }),
        }
    }

    pub(super) fn end(self) -> u64 {
        self.address + self.pages * page_size()
    }
}

/// The memory of a process in an image.
pub(super) struct Memory {
    pub(super) pid: String,
    pub(super) mm: Image,
    pub(super) pagemap: Image,
    pub(super) pages_id: u64,
}

impl Memory {
    pub(super) fn read(images: &Path, pid: &str) -> Result<Self, EditError> {
        let path = images.join(format!("pagemap-{pid}.img"));
        let pagemap = Image::read(&path, Kind::Pagemap)?;
        let head = pagemap.entries.first();
        let pages_id = head.and_then(|head| head.number(pagemap_head::PAGES_ID));
        Ok(Self {
            pid: pid.to_owned(),
            mm: Image::read(&images.join(format!("mm-{pid}.img")), Kind::Mm)?,
            pagemap,
            pages_id: pages_id.ok_or(EditError::Malformed {
                path,
                what: "it does not name its pages",
            })?,
        })
    }

    /// The file with the pages.
    pub(super) fn pages_path(&self, images: &Path) -> PathBuf {
        images.join(format!("pages-{}.img", self.pages_id))
    }

    /// Writes the mappings to another folder; returns the name of the image.
    pub(super) fn write_mappings(&self, folder: &Path) -> Result<String, EditError> {
        let name = format!("mm-{}.img", self.pid);
        self.mm.write_to(&folder.join(&name))?;
        Ok(name)
    }

    pub(super) fn write(&self) -> Result<(), EditError> {
        self.mm.write()?;
        self.pagemap.write()
    }

    /// The pages in the order of the file, which is that of addresses; none if some are elsewhere than
    /// in it, or where no process has memory.
    pub(super) fn runs(&self) -> Option<Vec<Run>> {
        runs(&self.pagemap)
    }

    pub(super) fn set_runs(&mut self, runs: &[Run]) {
        self.pagemap.entries.truncate(1);
        let entry = |run: &Run| {
            let field = |number, value| Field {
                number,
                value: Value::Varint(value),
            };
            Message(vec![
                field(pagemap_entry::VADDR, run.address),
                field(pagemap_entry::COMPAT_NR_PAGES, run.pages & 0xffff_ffff),
                field(pagemap_entry::FLAGS, pagemap_entry::PRESENT),
                field(pagemap_entry::NR_PAGES, run.pages),
            ])
        };
        self.pagemap.entries.extend(runs.iter().map(entry));
    }

    /// The mappings, as messages.
    pub(super) fn mappings(&self) -> Vec<Message> {
        let entry = self.mm.entries.first();
        entry.map_or(vec![], |entry| entry.messages(mm_entry::VMAS))
    }

    pub(super) fn set_mappings(&mut self, mappings: &[Message]) {
        if let Some(entry) = self.mm.entries.first_mut() {
            let values = mappings.iter().map(|m| Value::Bytes(m.to_bytes()));
            entry.set(mm_entry::VMAS, values);
        }
    }

    /// The first address, and that behind the last, of the mappings whose pages may be mapped.
    fn mappable(&self) -> Vec<(u64, u64)> {
        let mappings = self.mappings();
        // Pieces that fault on purpose are described like mappings, at the end.
        let guards: Vec<_> = mappings.iter().filter(|m| is_guard(m)).collect();
        mappings
            .iter()
            .filter(|mapping| is_mappable(mapping))
            .filter_map(extent)
            .filter(|&(start, end)| {
                let is_over = |(s, e): (u64, u64)| s < end && start < e;
                !guards.iter().filter_map(|m| extent(m)).any(is_over)
            })
            .collect()
    }

    /// What the mappings are like whose pages may be mapped.
    pub(super) fn traits(&self) -> Vec<Traits> {
        let mappings = self.mappings();
        let traits = |mapping: &Message| {
            let (start, end) = extent(mapping)?;
            let flags = mapping.number(vma_entry::FLAGS).unwrap_or(0);
            Some(Traits {
                start,
                end,
                is_unreserved: flags & libc::MAP_NORESERVE as u64 != 0,
                advice: mapping.number(vma_entry::MADV).unwrap_or(0),
            })
        };
        let mappable = mappings.iter().filter(|mapping| is_mappable(mapping));
        mappable.filter_map(traits).collect()
    }

    /// The groups of pages that are worth being mapped.
    pub(super) fn groups(&self, runs: &[Run]) -> Vec<Run> {
        let mut groups: Vec<Run> = Vec::new();
        for (start, end) in self.mappable() {
            let mut group: Option<Run> = None;
            let mut keep = |group: Option<Run>| {
                groups.extend(group.filter(|group| group.pages >= SMALLEST_REGION));
            };
            let first = runs.partition_point(|run| run.end() <= start);
            for run in runs[first..].iter().take_while(|run| run.address < end) {
                let (from, to) = (run.address.max(start), run.end().min(end));
                match &mut group {
                    Some(group) if from - group.end() <= WIDEST_GAP * page_size() => {
                        group.pages = (to - group.address) / page_size();
                    }
                    _ => {
                        let pages = (to - from) / page_size();
                        keep(group.replace(Run {
                            address: from,
                            pages,
                        }));
                    }
                }
            }
            keep(group);
        }
        groups
    }
}

/// The pages that a page map tells of, as of [`Memory::runs`].
pub(super) fn runs(pagemap: &Image) -> Option<Vec<Run>> {
    let run = |entry: &Message| {
        let flags = entry.number(pagemap_entry::FLAGS)?;
        let pages = entry.number(pagemap_entry::NR_PAGES);
        (flags & pagemap_entry::PRESENT != 0).then_some(Run {
            address: entry.number(pagemap_entry::VADDR)?,
            pages: pages.or_else(|| entry.number(pagemap_entry::COMPAT_NR_PAGES))?,
        })
    };
    let runs: Option<Vec<Run>> = pagemap.entries.get(1..)?.iter().map(run).collect();
    runs.filter(|runs| are_in_order(runs))
}

/// Whether runs are of whole pages, behind one another, and where processes have memory. So neither
/// their ends nor the sum of their sizes are beyond what a number holds.
pub(super) fn are_in_order(runs: &[Run]) -> bool {
    let mut behind = 0;
    runs.iter().all(|run| {
        let len = run.pages.checked_mul(page_size());
        let end = len.and_then(|len| run.address.checked_add(len));
        let is_next = run.address >= behind && run.address.is_multiple_of(page_size());
        behind = end.unwrap_or(u64::MAX);
        is_next && behind <= HIGHEST
    })
}

/// The processes of an image that have memory.
pub(super) fn processes(images: &Path) -> Result<Vec<String>, EditError> {
    let fail = |source| EditError::Read {
        path: images.into(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let pid = name.to_str().and_then(|name| {
            let pid = name.strip_prefix("mm-")?.strip_suffix(".img")?;
            Some(pid.to_owned())
        });
        found.extend(pid);
    }
    found.sort();
    Ok(found)
}

/// The first address of a mapping and that behind its last, of whole pages.
pub(super) fn extent(mapping: &Message) -> Option<(u64, u64)> {
    let number = |field| {
        mapping
            .number(field)
            .filter(|it| it.is_multiple_of(page_size()))
    };
    let (start, end) = (number(vma_entry::START)?, number(vma_entry::END)?);
    (start <= end && end <= HIGHEST).then_some((start, end))
}

fn is_guard(mapping: &Message) -> bool {
    mapping.number(vma_entry::STATUS).unwrap_or(0) & vma_entry::GUARD != 0
}

/// Whether a mapping of a file can stand for it: private anonymous memory of ordinary pages that
/// does not grow down as a stack does, is not locked, and was told nothing that only anonymous memory
/// can be told.
pub(super) fn is_mappable(mapping: &Message) -> bool {
    let number = |field| mapping.number(field).unwrap_or(0);
    let unlike = libc::MAP_GROWSDOWN | libc::MAP_HUGETLB | libc::MAP_LOCKED;
    let status = number(vma_entry::STATUS);
    status & vma_entry::ANON_PRIVATE != 0
        && status & !(vma_entry::REGULAR | vma_entry::HEAP | vma_entry::ANON_PRIVATE) == 0
        && number(vma_entry::FLAGS) & unlike as u64 == 0
        && number(vma_entry::MADV) & (1 << libc::MADV_WIPEONFORK) == 0
}

pub(super) fn open(path: &Path) -> Result<fs::File, EditError> {
    fs::File::open(path).map_err(|source| EditError::Read {
        path: path.into(),
        source,
    })
}

pub(super) fn create(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
}

/// Copies a part of a file, in the kernel where it can.
pub(super) fn copy(
    from: &fs::File,
    at: u64,
    to: &fs::File,
    place: u64,
    len: u64,
) -> io::Result<()> {
    let (mut read_at, mut write_at) = (at, place);
    let end = at.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    while read_at < end {
        let left = (end - read_at) as usize;
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left);
        match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // Not every file system can, nor from one to another.
            Err(
                rustix::io::Errno::XDEV | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL,
            ) => {
                let mut buffer = vec![0; left.min(1 << 20)];
                from.read_exact_at(&mut buffer, read_at)?;
                to.write_all_at(&buffer, write_at)?;
                read_at += buffer.len() as u64;
                write_at += buffer.len() as u64;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub(super) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}
