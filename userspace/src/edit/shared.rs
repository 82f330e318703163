//! Memory that processes share and that no file stands behind: `MAP_SHARED` with `MAP_ANONYMOUS`. The
//! pages are copied into a fresh memfd while CRIU gets ready, at half of what it takes CRIU to fault
//! them in one by one; CRIU inherits it and only maps it.
//!
//! CRIU itself describes it as a memfd that nobody has open, and restores it as one, with the same name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    EditError, fdinfo_entry, file_entry,
    image::{Image, Kind},
    memfd_file_entry, memfd_inode_entry,
    memory::inherited_file,
    pagemap_head,
    process::{Memory, page_size, runs},
    vma_entry,
    wire::Message,
};

/// What the kernel calls it, and CRIU after it.
pub const NAME: &str = "/dev/zero";

/// A piece of shared memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// The file with the pages, in the folder `criu`.
    pub pages: String,
    /// In bytes.
    pub size: u64,
    /// Where the pages are that follow each other in the file, and how long they are, in bytes. All else
    /// is zeros.
    pub runs: Vec<(u64, u64)>,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// CRIU's name for the piece of that number in [`super::Mapped::shared`], which a restore hands to it.
pub fn shared_name(number: usize) -> String {
    format!("warmimg-shared-{number}")
}

/// The shared memory of an image.
pub(super) struct Pieces {
    pub(super) pieces: Vec<Shared>,
    /// The place of the piece, by the id of each file that CRIU knows it as.
    places: BTreeMap<u64, usize>,
    /// The first of the ids of the files that take their place.
    first_id: u64,
}

impl Pieces {
    /// Finds it, and adds the files that take its place to the description of files.
    pub(super) fn take(images: &Path, files: &mut Image) -> Result<Self, EditError> {
        let open = open_files(images)?;
        // One piece has several files, as processes may map it for reading only.
        let mut known: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for entry in &files.entries {
            let file = entry.bytes(file_entry::MEMFD).and_then(Message::parse);
            let Some(file) = file else { continue };
            let number = |field| file.number(field);
            let ids = (
                number(memfd_file_entry::ID),
                number(memfd_file_entry::INODE_ID),
            );
            if let (Some(id), Some(inode)) = ids {
                known.entry(inode).or_default().push(id);
            }
        }
        let ids = files.entries.iter();
        let last = ids.filter_map(|entry| entry.number(file_entry::ID)).max();
        let mut found = Self {
            pieces: vec![],
            places: BTreeMap::new(),
            first_id: last.unwrap_or(0).saturating_add(1),
        };
        let path = images.join("memfd.img");
        if known.is_empty() || !path.exists() {
            return Ok(found);
        }
        for inode in &Image::read(&path, Kind::Memfd)?.entries {
            let id = inode.number(memfd_inode_entry::INODE_ID);
            let Some(known) = id.and_then(|id| known.get(&id)) else {
                continue;
            };
            if known.iter().any(|id| open.contains(id)) {
                continue;
            }
            if let Some(piece) = piece(images, inode)? {
                let place = found.pieces.len();
                found.pieces.push(piece);
                found.places.extend(known.iter().map(|id| (*id, place)));
                let name = shared_name(found.pieces.len());
                let id = found.first_id.saturating_add(place as u64);
                files.entries.push(inherited_file(id, &name, libc::O_RDWR));
            }
        }
        Ok(found)
    }

    /// Turns the mappings of these pieces into mappings of the inherited files. Returns whether there
    /// are any.
    pub(super) fn replace(&self, memory: &mut Memory) -> bool {
        let mut mappings = memory.mappings();
        let mut is_there = false;
        for mapping in &mut mappings {
            let number = |field| mapping.number(field).unwrap_or(0);
            let status = number(vma_entry::STATUS);
            let place = self.places.get(&number(vma_entry::SHMID));
            let (Some(place), true) = (place, status & vma_entry::MEMFD != 0) else {
                continue;
            };
            let id = self.first_id.saturating_add(*place as u64);
            mapping.replace_number(vma_entry::STATUS, status & !vma_entry::MEMFD);
            mapping.replace_number(vma_entry::SHMID, id);
            is_there = true;
        }
        if is_there {
            memory.set_mappings(&mappings);
        }
        is_there
    }
}

/// The ids of all files that processes have open.
fn open_files(images: &Path) -> Result<BTreeSet<u64>, EditError> {
    let fail = |source| EditError::Read {
        path: images.into(),
        source,
    };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with("fdinfo-") && name.ends_with(".img")) {
            let image = Image::read(&path, Kind::Fdinfo)?;
            let id = |entry: &Message| entry.number(fdinfo_entry::ID);
            found.extend(image.entries.iter().filter_map(id));
        }
    }
    Ok(found)
}

/// Nothing if it is a memfd that the server made, or anything else that is out of the ordinary.
fn piece(images: &Path, inode: &Message) -> Result<Option<Shared>, EditError> {
    use memfd_inode_entry as field;
    let number = |field| inode.number(field).unwrap_or(0);
    let is_ordinary = inode.bytes(field::NAME) == Some(NAME.as_bytes())
        && number(field::SEALS) == libc::F_SEAL_SEAL as u64
        && number(field::HUGETLB_FLAG) == 0;
    if !is_ordinary {
        return Ok(None);
    }
    let path = images.join(format!("pagemap-shmem-{}.img", number(field::SHMID)));
    let pagemap = Image::read(&path, Kind::Pagemap)?;
    let head = pagemap.entries.first();
    let pages_id = head.and_then(|head| head.number(pagemap_head::PAGES_ID));
    let size = number(field::SIZE);
    let runs = runs(&pagemap).filter(|runs| runs.last().is_none_or(|last| last.end() <= size));
    let (Some(pages_id), Some(runs)) = (pages_id, runs) else {
        return Ok(None);
    };
    let word = |field| u32::try_from(number(field)).ok();
    let (Some(uid), Some(gid), Some(mode)) =
        (word(field::UID), word(field::GID), word(field::MODE))
    else {
        return Ok(None);
    };
    Ok(Some(Shared {
        pages: format!("pages-{pages_id}.img"),
        size,
        runs: runs
            .iter()
            .map(|run| (run.address, run.pages * page_size()))
            .collect(),
        uid,
        gid,
        mode: mode & 0o7777,
    }))
}
