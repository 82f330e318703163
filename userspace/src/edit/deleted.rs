//! Deleted files that an image holds because processes have them open or mapped. CRIU makes each anew under
//! its old name and deletes it again: two copies that come back at the same moment, or what a killed CRIU
//! has left, would be in each other's way.

use std::{
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use super::{
    EditError, FILES, REMAPS, file_entry,
    image::{Image, Kind},
    reg_file_entry, remap_entry,
    wire::{Message, Value},
};

/// Whether an image holds deleted files.
pub fn has_deleted(images: &Path) -> bool {
    images.join(REMAPS).exists()
}

/// Gives the deleted files of a view of an image names that no other copy has. Returns the paths at
/// which CRIU has them for a moment.
///
/// # Errors
/// See [`EditError`].
pub fn name_deleted(view: &Path, suffix: &str) -> Result<Vec<PathBuf>, EditError> {
    let remaps = Image::read(&view.join(REMAPS), Kind::RemapFpath)?;
    // Others are of processes that have ended, below /proc.
    let is_deleted =
        |remap: &&Message| remap.number(remap_entry::REMAP_TYPE) == Some(remap_entry::GHOST);
    let deleted = || remaps.entries.iter().filter(is_deleted);
    let ids: Vec<u64> = deleted()
        .filter_map(|remap| remap.number(remap_entry::ORIG_ID))
        .collect();
    let mut image = Image::read(&view.join(FILES), Kind::Files)?;
    let mut names = vec![];
    for entry in &mut image.entries {
        entry.edit(file_entry::REG, |file| {
            let id = file.number(reg_file_entry::ID);
            let Some(name) = file.bytes(reg_file_entry::NAME) else {
                return;
            };
            if id.is_some_and(|id| ids.contains(&id)) {
                let name = with_suffix(name, suffix);
                file.set(reg_file_entry::NAME, [Value::Bytes(name.clone())]);
                names.push(name);
            }
        });
    }
    image.write()?;
    // One deleted file can be open several times; CRIU makes it by the name of one of them.
    let numbers = deleted().filter_map(|remap| remap.number(remap_entry::REMAP_ID));
    let path = |name: Vec<u8>| Path::new("/").join(std::ffi::OsString::from_vec(name));
    let made = numbers.flat_map(|number| {
        let ghost = format!(".cr.{number:x}.ghost");
        names
            .iter()
            .map(move |name| [name, ghost.as_bytes()].concat())
    });
    let made: Vec<_> = made.chain(names.iter().cloned()).map(path).collect();
    Ok(made)
}

/// A path with something added to its last name, which is cut so that it does not get too long.
fn with_suffix(path: &[u8], suffix: &str) -> Vec<u8> {
    /// What CRIU adds takes some of the 255 bytes that a name may have.
    const LONGEST: usize = 200;
    let begin = path
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |at| at + 1);
    let end = path.len().min(begin + LONGEST - suffix.len().min(LONGEST));
    [&path[..end], suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_short_enough() {
        assert_eq!(with_suffix(b"/tmp/file", ".1"), b"/tmp/file.1");
        assert_eq!(with_suffix(b"tmp", ".1"), b"tmp.1");
        let long = [b"/tmp/".to_vec(), vec![b'x'; 255]].concat();
        assert_eq!(with_suffix(&long, ".12").len(), 205);
        assert!(with_suffix(&long, ".12").ends_with(b"x.12"));
    }
}
