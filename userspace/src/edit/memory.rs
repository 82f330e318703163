//! Memory that a restore maps instead of copying it.
//!
//! CRIU writes the pages of each process to a file, in the order of their addresses. Where many of
//! them are near each other, [`lay_out`] closes the gaps with pages of zeros, which take no room on
//! disk; after that, such a region is one piece of the file. [`describe_mapped`] writes a second
//! description of the same processes, in which those regions are private mappings of that file,
//! which is shared by all copies, and only the rest is left to be copied.
//!
//! Invariant: both descriptions give the same memory.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    EditError, FILES, file_entry,
    image::{Image, Kind},
    pagemap_head,
    process::{Memory, Run, copy, create, extent, is_mappable, open, page_size, processes},
    reg_file_entry,
    shared::{Pieces, Shared},
    vma_entry,
    wire::{Field, Message, Value},
};
use crate::tree::NsPid;

/// The number of ranges that [`Mapped::ranges`] has at most.
const MOST_RANGES: usize = 64;

/// The memory of an image that can be mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapped {
    /// The files with the pages, in the folder `criu`.
    pub files: Vec<String>,
    /// All addresses at which they are mapped, in any of the processes, lie in these: the first,
    /// and that behind the last.
    pub ranges: Vec<(u64, u64)>,
    /// What is special about some of the mapped memory, in the order of addresses.
    #[serde(default)]
    pub traits: Vec<Traits>,
    /// How much is mapped, in all processes.
    pub bytes: u64,
    /// The memory that processes share: made before CRIU restores, and mapped by it.
    #[serde(default)]
    pub shared: Vec<Shared>,
}

impl Mapped {
    /// Whether all memory is left to CRIU.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.shared.is_empty()
    }
}

/// What is special about mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traits {
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// No memory was reserved for it (`MAP_NORESERVE`).
    pub is_unreserved: bool,
    /// What it was told by madvise(2), each a bit.
    pub advice: u64,
}

impl Traits {
    /// Whether it was told this by madvise(2).
    pub fn has(&self, advice: i32) -> bool {
        let bits = u32::try_from(advice)
            .ok()
            .and_then(|bit| self.advice.checked_shr(bit));
        bits.is_some_and(|bits| bits & 1 == 1)
    }

    fn kind(&self) -> (bool, u64) {
        (self.is_unreserved, self.advice)
    }
}

/// CRIU's name for the file of that number in [`Mapped::files`], which a restore hands to it.
pub fn inherited_name(number: usize) -> String {
    format!("warmimg-memory-{number}")
}

/// A piece of the memory of a process that is to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    run: Run,
    /// Where it begins in the file with the pages, in bytes.
    offset: u64,
}

impl Region {
    /// What of it is in some runs, with its place in the file.
    fn parts(&self, runs: &[Run]) -> Vec<(Run, u64)> {
        let part = |run: &Run| {
            let (from, to) = (
                run.address.max(self.run.address),
                run.end().min(self.run.end()),
            );
            let part = Run {
                address: from,
                pages: to.saturating_sub(from) / page_size(),
            };
            (part.pages > 0).then(|| (part, self.offset + from - self.run.address))
        };
        runs.iter().filter_map(part).collect()
    }
}

/// Makes the pages of each region follow each other in their file.
///
/// # Errors
/// See [`EditError`].
pub fn lay_out(images: &Path) -> Result<(), EditError> {
    for pid in processes(images)? {
        let mut memory = Memory::read(images, &pid)?;
        let Some(old) = memory.runs() else {
            continue;
        };
        let new = joined(&old, &memory.groups(&old));
        if new == old {
            continue;
        }
        let path = memory.pages_path(images);
        let aside = path.with_extension("new");
        spread(&path, &aside, &old, &new)?;
        memory.set_runs(&new);
        memory.pagemap.write()?;
        fs::rename(&aside, &path).map_err(|source| EditError::Write { path, source })?;
    }
    Ok(())
}

/// Runs in which each group is one; what is in none stays as it is.
fn joined(runs: &[Run], groups: &[Run]) -> Vec<Run> {
    let mut new = Vec::new();
    let mut groups = groups.iter().copied().peekable();
    let mut begun = None;
    for &run in runs {
        // A run can be cut by groups, as it can be of several mappings.
        let mut rest = run;
        while rest.pages > 0 {
            while groups
                .next_if(|group| group.end() <= rest.address)
                .is_some()
            {}
            let (piece, group) = match groups.peek() {
                Some(group) if group.address <= rest.address => {
                    (rest.end().min(group.end()), Some(*group))
                }
                Some(group) => (rest.end().min(group.address), None),
                None => (rest.end(), None),
            };
            let pages = (piece - rest.address) / page_size();
            match group {
                Some(group) if begun == Some(group) => {}
                Some(group) => new.push(group),
                None => new.push(Run {
                    address: rest.address,
                    pages,
                }),
            }
            begun = group.or(begun);
            rest = Run {
                address: piece,
                pages: rest.pages - pages,
            };
        }
    }
    new
}

/// Copies pages to where they are in a file with other runs, and leaves holes between.
fn spread(from: &Path, to: &Path, old: &[Run], new: &[Run]) -> Result<(), EditError> {
    let write = |source| EditError::Write {
        path: to.into(),
        source,
    };
    let source = open(from)?;
    let target = create(to).map_err(write)?;
    let (mut place, mut begin) = (new.iter(), 0);
    let mut current = place.next();
    let mut offset = 0;
    for run in old {
        let mut address = run.address;
        while address < run.end() {
            let Some(into) = current else {
                return Ok(());
            };
            if address >= into.end() {
                begin += into.pages * page_size();
                current = place.next();
                continue;
            }
            let len = run.end().min(into.end()) - address;
            copy(
                &source,
                offset,
                &target,
                begin + address - into.address,
                len,
            )
            .map_err(write)?;
            address += len;
            offset += len;
        }
    }
    let pages: u64 = new.iter().map(|run| run.pages).sum();
    target.set_len(pages * page_size()).map_err(write)
}

/// Describes the processes of an image once more, in a new folder beside it: their regions are
/// mapped, and so is what they share. Of the regions, the pages in `hot`, by pid, are copied all the
/// same: over the mapping. What does not differ is linked. With nothing to be mapped, there is no such
/// folder.
///
/// # Errors
/// See [`EditError`].
pub fn describe_mapped(
    images: &Path,
    folder: &Path,
    hot: &BTreeMap<NsPid, Vec<Run>>,
) -> Result<Mapped, EditError> {
    let mut files = Image::read(&images.join(FILES), Kind::Files)?.at(folder.join(FILES));
    let shared = Pieces::take(images, &mut files)?;
    let mut mapped = Mapped::default();
    let mut written = Vec::new();
    let make_folder = || {
        let made = fs::DirBuilder::new().mode(0o700).create(folder);
        let is_there = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
        made.or_else(|error| if is_there(&error) { Ok(()) } else { Err(error) })
            .map_err(|source| EditError::Write {
                path: folder.into(),
                source,
            })
    };
    for pid in processes(images)? {
        let mut memory = Memory::read(images, &pid)?;
        let shares = shared.replace(&mut memory);
        if shares {
            make_folder()?;
            mapped.shared.clone_from(&shared.pieces);
            written.push(memory.write_mappings(folder)?);
        }
        let Some(runs) = memory.runs() else {
            continue;
        };
        let mut regions = regions(&runs, &memory.groups(&runs));
        // The guard knows addresses, not processes: they must mean the same in all.
        let traits = memory.traits();
        regions.retain(|region| agrees(region.run, &traits, &mapped.traits));
        if regions.is_empty() {
            continue;
        }
        mapped.traits.extend(traits);
        make_folder()?;
        let number = mapped.files.len() + 1;
        let id = add_file(&mut files, number);
        mapped.files.push(format!("pages-{}.img", memory.pages_id));
        mapped.bytes += regions
            .iter()
            .map(|r| r.run.pages * page_size())
            .sum::<u64>();
        let ends = |region: &Region| (region.run.address, region.run.end());
        mapped.ranges.extend(regions.iter().map(ends));
        let groups: Vec<Run> = regions.iter().map(|region| region.run).collect();
        let mut copied = without(&runs, &groups);
        let pid = pid.parse().map(NsPid);
        let hot = pid
            .ok()
            .and_then(|pid| hot.get(&pid))
            .map_or(&[][..], Vec::as_slice);
        copied.extend(regions.iter().flat_map(|region| region.parts(hot)));
        copied.sort_unstable_by_key(|(run, _)| run.address);
        let folders = (images, folder);
        written.extend(describe_process(memory, folders, &copied, &regions, id)?);
    }
    if mapped.is_empty() {
        return Ok(mapped);
    }
    mapped.ranges = cover(mapped.ranges, MOST_RANGES);
    mapped.traits.retain(|traits| traits.kind() != (false, 0));
    mapped
        .traits
        .sort_unstable_by_key(|traits| (traits.start, traits.end));
    mapped.traits.dedup();
    files.write()?;
    written.push(FILES.to_owned());
    link_others(images, folder, &[written, mapped.files.clone()].concat())?;
    Ok(mapped)
}

/// Whether memory of one process is like that of the others at the same addresses.
fn agrees(run: Run, own: &[Traits], others: &[Traits]) -> bool {
    let is_there = |traits: &&Traits| traits.start < run.end() && run.address < traits.end;
    let own = own.iter().find(is_there).map(Traits::kind);
    others
        .iter()
        .filter(is_there)
        .all(|other| own == Some(other.kind()))
}

/// The regions, with their places in the file.
fn regions(runs: &[Run], groups: &[Run]) -> Vec<Region> {
    let mut offset = 0;
    let mut places = BTreeMap::new();
    for run in runs {
        places.insert(run.address, (*run, offset));
        offset += run.pages * page_size();
    }
    let place = |group: &Run| {
        let (run, begin) = places.range(..=group.address).next_back()?.1;
        (group.end() <= run.end()).then_some(Region {
            run: *group,
            offset: begin + group.address - run.address,
        })
    };
    groups.iter().filter_map(place).collect()
}

/// Writes the images of a process with mapped regions; returns their names.
fn describe_process(
    mut memory: Memory,
    (images, folder): (&Path, &Path),
    copied: &[(Run, u64)],
    regions: &[Region],
    file: u64,
) -> Result<[String; 3], EditError> {
    /// Added to the numbers that CRIU gives to files of pages.
    const COPIED: u64 = 1 << 30;
    let mappings: Vec<Message> = memory
        .mappings()
        .iter()
        .flat_map(|mapping| divide(mapping, regions, file))
        .collect();
    memory.set_mappings(&mappings);
    let source = open(&memory.pages_path(images))?;
    let copied_id = COPIED | memory.pages_id;
    let pages = format!("pages-{copied_id}.img");
    let path = folder.join(&pages);
    let write = |source| EditError::Write {
        path: path.clone(),
        source,
    };
    let target = create(&path).map_err(write)?;
    let (mut kept, mut at) = (Vec::new(), 0);
    for (run, offset) in copied {
        let len = run.pages * page_size();
        copy(&source, *offset, &target, at, len).map_err(write)?;
        at += len;
        kept.push(*run);
    }
    memory.set_runs(&kept);
    if let Some(head) = memory.pagemap.entries.first_mut() {
        head.replace_number(pagemap_head::PAGES_ID, copied_id);
    }
    let mm = memory.write_mappings(folder)?;
    let pagemap = format!("pagemap-{}.img", memory.pid);
    memory.pagemap.at(folder.join(&pagemap)).write()?;
    Ok([mm, pagemap, pages])
}

/// The runs that are in no group, with their places in the file. Groups are parts of runs.
fn without(runs: &[Run], groups: &[Run]) -> Vec<(Run, u64)> {
    let mut kept = Vec::new();
    let mut groups = groups.iter().peekable();
    let mut offset = 0;
    for run in runs {
        let mut address = run.address;
        let mut keep = |from: u64, to: u64| {
            if from < to {
                let pages = (to - from) / page_size();
                let run_at = Run {
                    address: from,
                    pages,
                };
                kept.push((run_at, offset + from - run.address));
            }
        };
        while let Some(group) = groups.next_if(|group| group.address < run.end()) {
            keep(address, group.address);
            address = group.end();
        }
        keep(address, run.end());
        offset += run.pages * page_size();
    }
    kept
}

/// A mapping cut into the regions within it, which become mappings of a file, and what is between.
fn divide(mapping: &Message, regions: &[Region], file: u64) -> Vec<Message> {
    let Some((start, end)) = extent(mapping).filter(|_| is_mappable(mapping)) else {
        return vec![mapping.clone()];
    };
    let piece = |from: u64, to: u64| {
        let mut piece = mapping.clone();
        piece.replace_number(vma_entry::START, from);
        piece.replace_number(vma_entry::END, to);
        piece
    };
    let mut pieces = Vec::new();
    let mut at = start;
    let first = regions.partition_point(|region| region.run.end() <= start);
    for region in regions[first..].iter().take_while(|r| r.run.address < end) {
        if at < region.run.address {
            pieces.push(piece(at, region.run.address));
        }
        let mut mapped = piece(region.run.address, region.run.end());
        let number = |field| mapping.number(field).unwrap_or(0);
        let status = number(vma_entry::STATUS) & !vma_entry::ANON_PRIVATE;
        let flags = number(vma_entry::FLAGS) & !(libc::MAP_ANONYMOUS as u64);
        mapped.replace_number(vma_entry::STATUS, status | vma_entry::FILE_PRIVATE);
        mapped.replace_number(vma_entry::FLAGS, flags);
        mapped.replace_number(vma_entry::PGOFF, region.offset);
        mapped.replace_number(vma_entry::SHMID, file);
        mapped.set(vma_entry::FDFLAGS, [Value::Varint(libc::O_RDONLY as u64)]);
        pieces.push(mapped);
        at = region.run.end();
    }
    if at < end {
        pieces.push(piece(at, end));
    }
    pieces
}

/// Adds the file with that number to the description of files; returns its id.
fn add_file(files: &mut Image, number: usize) -> u64 {
    let ids = files.entries.iter();
    let id = ids.filter_map(|entry| entry.number(file_entry::ID)).max();
    let id = id.unwrap_or(0).saturating_add(1);
    files
        .entries
        .push(inherited_file(id, &inherited_name(number), libc::O_RDONLY));
    id
}

/// The description of a file that CRIU inherits by this name.
pub(super) fn inherited_file(id: u64, name: &str, flags: i32) -> Message {
    let field = |number, value| Field { number, value };
    let zeros = |fields: std::ops::RangeInclusive<u32>| {
        let fields = fields.map(|number| field(number, Value::Varint(0)));
        Value::Bytes(Message(fields.collect()).to_bytes())
    };
    let file = Message(vec![
        field(reg_file_entry::ID, Value::Varint(id)),
        field(reg_file_entry::FLAGS, Value::Varint(flags as u64)),
        // Left to the caller: a socket has none.
        field(reg_file_entry::POS, Value::Varint(u64::MAX)),
        // `fown_entry`: nobody is told of it by a signal.
        field(reg_file_entry::FOWN, zeros(1..=5)),
        field(
            reg_file_entry::NAME,
            Value::Bytes(format!("/{name}").into_bytes()),
        ),
    ]);
    Message(vec![
        field(file_entry::TYPE, Value::Varint(file_entry::TYPE_REG)),
        field(file_entry::ID, Value::Varint(id)),
        field(file_entry::REG, Value::Bytes(file.to_bytes())),
    ])
}

/// Links what another folder has and is not among `written`.
fn link_others(images: &Path, folder: &Path, written: &[String]) -> Result<(), EditError> {
    let read = |source| EditError::Read {
        path: images.into(),
        source,
    };
    for entry in fs::read_dir(images).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        if written.iter().any(|written| name == written.as_str()) {
            continue;
        }
        // Both folders move together.
        let beside = images.file_name().unwrap_or_default();
        let target = Path::new("..").join(beside).join(&name);
        let link = folder.join(&name);
        // Not every file system has links; then these few are there twice.
        symlink(target, &link)
            .or_else(|_| fs::copy(images.join(&name), &link).map(drop))
            .map_err(|source| EditError::Write { path: link, source })?;
    }
    Ok(())
}

/// At most `most` ranges that cover all of these, and as little else as possible.
fn cover(mut ranges: Vec<(u64, u64)>, most: usize) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut cover: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match cover.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => cover.push((start, end)),
        }
    }
    // The widest gaps stay.
    let mut gaps: Vec<u64> = cover.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let Some(&narrowest) = gaps.get(most.saturating_sub(1)) else {
        return cover;
    };
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in cover {
        match joined.last_mut() {
            Some(last) if start - last.1 <= narrowest => last.1 = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
