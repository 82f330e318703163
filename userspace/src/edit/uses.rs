//! What the processes of an image have to do with files outside of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use super::{
    EditError, FILES, REMAPS, file_entry,
    image::{Image, Kind},
    mm_entry, reg_file_entry, remap_entry, vma_entry,
    wire::Message,
};

/// What processes do with a file; of several, the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is open to be read.
    Open,
    /// It is mapped, and not to be written to.
    Mapped,
    /// It is open to be written to, so that its content is nothing to rely on.
    Written,
}

/// The files that the images refer to by path: executables, libraries, logs. Those that CRIU carries
/// are none of them.
///
/// # Errors
/// See [`EditError`].
pub fn uses(images: &Path) -> Result<BTreeMap<PathBuf, Use>, EditError> {
    let carried = carried(images)?;
    let mapped = mapped(images)?;
    let files = Image::read(&images.join(FILES), Kind::Files)?;
    let mut uses = BTreeMap::new();
    for entry in &files.entries {
        let file = entry.bytes(file_entry::REG).and_then(Message::parse);
        let Some(file) = file else { continue };
        let id = file.number(reg_file_entry::ID).unwrap_or(0);
        let Some(name) = file.bytes(reg_file_entry::NAME) else {
            continue;
        };
        if carried.contains(&id) {
            continue;
        }
        let flags = file.number(reg_file_entry::FLAGS).unwrap_or(0);
        let found = match flags & libc::O_ACCMODE as u64 == libc::O_RDONLY as u64 {
            false => Use::Written,
            true if mapped.contains(&id) => Use::Mapped,
            true => Use::Open,
        };
        let path = Path::new("/").join(OsString::from_vec(name.to_vec()));
        let known = uses.entry(path).or_insert(found);
        *known = found.max(*known);
    }
    Ok(uses)
}

/// The files that are part of the image, as their names are gone.
fn carried(images: &Path) -> Result<BTreeSet<u64>, EditError> {
    let path = images.join(REMAPS);
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let image = Image::read(&path, Kind::RemapFpath)?;
    let id = |entry: &Message| entry.number(remap_entry::ORIG_ID);
    Ok(image.entries.iter().filter_map(id).collect())
}

/// The files that are mapped, and the executables.
fn mapped(images: &Path) -> Result<BTreeSet<u64>, EditError> {
    let fail = |source| EditError::Read {
        path: images.into(),
        source,
    };
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with("mm-") && name.ends_with(".img")) {
            continue;
        }
        for mm in Image::read(&path, Kind::Mm)?.entries {
            found.extend(mm.number(mm_entry::EXE_FILE_ID));
            for mapping in mm.messages(mm_entry::VMAS) {
                let status = mapping.number(vma_entry::STATUS).unwrap_or(0);
                if status & (vma_entry::FILE_PRIVATE | vma_entry::FILE_SHARED) != 0 {
                    found.extend(mapping.number(vma_entry::SHMID));
                }
            }
        }
    }
    Ok(found)
}

/// Has CRIU restore whatever is there now, of the files that were open or mapped.
///
/// # Errors
/// See [`EditError`].
pub fn accept_changes(images: &Path) -> Result<(), EditError> {
    let mut image = Image::read(&images.join(FILES), Kind::Files)?;
    for entry in &mut image.entries {
        entry.edit(file_entry::REG, |file| {
            file.remove(&[
                reg_file_entry::SIZE,
                reg_file_entry::MODE,
                reg_file_entry::BUILD_ID,
            ]);
            file.remove(&reg_file_entry::CHECKSUM);
        });
    }
    image.write()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::wire::{Field, Value};

    fn message(fields: Vec<(u32, Value)>) -> Message {
        let field = |(number, value)| Field { number, value };
        Message(fields.into_iter().map(field).collect())
    }

    fn file(id: u64, flags: i32, name: &str) -> Message {
        let file = message(vec![
            (reg_file_entry::ID, Value::Varint(id)),
            (reg_file_entry::FLAGS, Value::Varint(flags as u64)),
            (reg_file_entry::NAME, Value::Bytes(name.into())),
            (reg_file_entry::SIZE, Value::Varint(7)),
            (reg_file_entry::MODE, Value::Varint(0o100_644)),
            (reg_file_entry::BUILD_ID, Value::Varint(1)),
        ]);
        message(vec![(file_entry::REG, Value::Bytes(file.to_bytes()))])
    }

    fn write(images: &Path, name: &str, kind: Kind, entries: Vec<Message>) {
        Image::new(images.join(name), kind, entries)
            .write()
            .unwrap();
    }

    #[test]
    fn what_is_mapped_open_written_and_carried_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path();
        let vma = |status, shmid| {
            let fields = vec![
                (vma_entry::STATUS, Value::Varint(status)),
                (vma_entry::SHMID, Value::Varint(shmid)),
            ];
            (mm_entry::VMAS, Value::Bytes(message(fields).to_bytes()))
        };
        let mm = message(vec![
            (mm_entry::EXE_FILE_ID, Value::Varint(1)),
            vma(vma_entry::REGULAR | vma_entry::FILE_PRIVATE, 2),
            // Shared anonymous memory has a number there that is no file.
            vma(vma_entry::REGULAR, 3),
        ]);
        write(images, "mm-300.img", Kind::Mm, vec![mm]);
        let files = vec![
            file(1, libc::O_RDONLY, "/bin/server"),
            file(2, libc::O_RDONLY, "/lib/a.so"),
            file(3, libc::O_RDONLY, "/srv/app.jar"),
            file(4, libc::O_WRONLY | libc::O_APPEND, "/var/log/app"),
            file(5, libc::O_RDONLY, "/var/log/app"),
            file(6, libc::O_RDWR, "/tmp/gone"),
        ];
        write(images, FILES, Kind::Files, files);
        let remap = message(vec![(remap_entry::ORIG_ID, Value::Varint(6))]);
        write(images, "remap-fpath.img", Kind::RemapFpath, vec![remap]);
        let expected = [
            ("/bin/server", Use::Mapped),
            ("/lib/a.so", Use::Mapped),
            ("/srv/app.jar", Use::Open),
            ("/var/log/app", Use::Written),
        ];
        let expected = expected.map(|(path, of)| (PathBuf::from(path), of));
        assert_eq!(uses(images).unwrap(), expected.into());

        accept_changes(images).unwrap();
        let files = Image::read(&images.join(FILES), Kind::Files).unwrap();
        for entry in &files.entries {
            let file = Message::parse(entry.bytes(file_entry::REG).unwrap()).unwrap();
            let fields: Vec<u32> = file.0.iter().map(|field| field.number).collect();
            let left = [
                reg_file_entry::ID,
                reg_file_entry::FLAGS,
                reg_file_entry::NAME,
            ];
            assert_eq!(fields, left);
        }
    }
}
