//! Makes an image of a tree that was under a filter of ours, as is one whose memory is mapped from another
//! image and guarded: in its own image, all memory is its own, and the filter is gone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    EditError, FILES, core_entry, cores, file_entry,
    image::{Image, Kind},
    process::{Memory, Run, copy, create, extent, open, page_size, processes},
    reg_file_entry, seccomp_entry, seccomp_filter, thread_core_entry, vma_entry,
    wire::{Message, Value},
};
use crate::guard::filter;

/// Where memory is from: a file with pages, and a place in it in bytes.
type Source<'a> = (&'a fs::File, u64);

/// Takes mapped memory and its filter out of fresh images, if they have any.
///
/// # Errors
/// See [`EditError`]: [`EditError::Read`] if the image that memory is mapped from is gone.
pub fn take_back(images: &Path) -> Result<(), EditError> {
    let path = images.join("seccomp.img");
    if !path.exists() || !remove_filter(images, Image::read(&path, Kind::Seccomp)?)? {
        return Ok(());
    }
    let mut files = Image::read(&images.join(FILES), Kind::Files)?;
    let mut sources = BTreeMap::new();
    for entry in &files.entries {
        if let Some((id, path)) = memory_file(entry) {
            sources.insert(id, open(&path)?);
        }
    }
    for pid in processes(images)? {
        own_memory(images, Memory::read(images, &pid)?, &sources)?;
    }
    files
        .entries
        .retain(|entry| memory_file(entry).is_none_or(|(id, _)| !sources.contains_key(&id)));
    files.write()
}

/// A file with the pages of an image, by its id.
fn memory_file(entry: &Message) -> Option<(u64, PathBuf)> {
    let file = Message::parse(entry.bytes(file_entry::REG)?)?;
    let name = String::from_utf8(file.bytes(reg_file_entry::NAME)?.to_vec()).ok()?;
    let (_, file_name) = name.rsplit_once("/criu/")?;
    let is_ours = file_name.starts_with("pages-") && file_name.ends_with(".img");
    is_ours.then(|| (file.number(reg_file_entry::ID).unwrap_or(0), name.into()))
}

/// Removes our filter from all threads. Returns whether any had it.
fn remove_filter(images: &Path, mut image: Image) -> Result<bool, EditError> {
    let Some(entry) = image.entries.first_mut() else {
        return Ok(false);
    };
    let mut filters = entry.messages(seccomp_entry::SECCOMP_FILTERS);
    let is_ours = |filter: &Message| {
        filter
            .bytes(seccomp_filter::FILTER)
            .is_some_and(filter::is_ours)
    };
    let ours: Vec<u64> = (0..)
        .zip(&filters)
        .filter(|(_, filter)| is_ours(filter))
        .map(|(place, _)| place)
        .collect();
    if ours.is_empty() {
        return Ok(false);
    }
    for filter in &mut filters {
        let previous = filter.number(seccomp_filter::PREV);
        if previous.is_some_and(|previous| ours.contains(&previous)) {
            filter.remove(&[seccomp_filter::PREV]);
        }
    }
    let values = filters.iter().map(|filter| Value::Bytes(filter.to_bytes()));
    entry.set(seccomp_entry::SECCOMP_FILTERS, values);
    image.write()?;
    for path in cores(images)? {
        let mut core = Image::read(&path, Kind::Core)?;
        for entry in &mut core.entries {
            entry.edit(core_entry::THREAD_CORE, |thread| {
                let filter = thread.number(thread_core_entry::SECCOMP_FILTER);
                if filter.is_some_and(|filter| ours.contains(&filter)) {
                    thread.remove(&[thread_core_entry::SECCOMP_FILTER]);
                    let disabled = thread_core_entry::SECCOMP_MODE_DISABLED;
                    thread.replace_number(thread_core_entry::SECCOMP_MODE, disabled);
                }
            });
        }
        core.write()?;
    }
    Ok(true)
}

/// Turns the mappings of these files into anonymous memory with its pages in the image.
fn own_memory(
    images: &Path,
    mut memory: Memory,
    sources: &BTreeMap<u64, fs::File>,
) -> Result<(), EditError> {
    let mut mappings = memory.mappings();
    let own = memory.pages_path(images);
    let own_pages = open(&own)?;
    let Some(runs) = memory.runs() else {
        return Ok(());
    };
    // What was written to since is in the dump; all else is in the file that is mapped.
    let mut written = Vec::new();
    let mut offset = 0;
    for run in runs {
        written.push((run, (&own_pages, offset)));
        offset += run.pages * page_size();
    }
    let mut pages = Vec::new();
    for mapping in &mut mappings {
        let number = |field| mapping.number(field).unwrap_or(0);
        let status = number(vma_entry::STATUS);
        let source = sources.get(&number(vma_entry::SHMID));
        let (Some(source), Some((start, end))) = (source, extent(mapping)) else {
            continue;
        };
        if status & vma_entry::FILE_PRIVATE == 0 {
            continue;
        }
        let begin = number(vma_entry::PGOFF);
        let mut at = start;
        let within = |run: &Run| run.address < end && start < run.end();
        let written = written.iter().map(|(run, _)| *run).filter(within);
        for run in written.chain([Run {
            address: end,
            pages: 0,
        }]) {
            if at < run.address {
                let piece = Run {
                    address: at,
                    pages: (run.address - at) / page_size(),
                };
                pages.push((piece, (source, begin.saturating_add(at - start))));
            }
            at = at.max(run.end());
        }
        let flags = number(vma_entry::FLAGS) | libc::MAP_ANONYMOUS as u64;
        let status = status & !vma_entry::FILE_PRIVATE | vma_entry::ANON_PRIVATE;
        mapping.replace_number(vma_entry::STATUS, status);
        mapping.replace_number(vma_entry::FLAGS, flags);
        mapping.replace_number(vma_entry::PGOFF, 0);
        mapping.replace_number(vma_entry::SHMID, 0);
    }
    if pages.is_empty() {
        return Ok(());
    }
    pages.extend(written);
    pages.sort_by_key(|(run, _)| run.address);
    let aside = own.with_extension("new");
    gather(&aside, &pages).map_err(|source| EditError::Write {
        path: aside.clone(),
        source,
    })?;
    let runs: Vec<Run> = pages.iter().map(|(run, _)| *run).collect();
    memory.set_runs(&runs);
    memory.set_mappings(&mappings);
    memory.write()?;
    fs::rename(&aside, &own).map_err(|source| EditError::Write { path: own, source })
}

/// Writes pages to a file, one after another.
fn gather(path: &Path, pages: &[(Run, Source<'_>)]) -> std::io::Result<()> {
    let target = create(path)?;
    let mut at = 0;
    for (run, (source, offset)) in pages {
        let len = run.pages * page_size();
        copy(source, *offset, &target, at, len)?;
        at += len;
    }
    Ok(())
}
