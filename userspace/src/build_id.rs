//! The id that linkers give each build of a program or library, as hexadecimal digits.

use std::{fs::File, path::Path};

use object::{
    LittleEndian, ReadCache, ReadRef, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

type Header = elf::FileHeader64<LittleEndian>;

/// That of a file, if it is one of 64 bits and has any.
pub fn build_id(path: &Path) -> Option<String> {
    let data = ReadCache::new(File::open(path).ok()?);
    let header = Header::parse(&data).ok()?;
    of(header, header.endian().ok()?, &data)
}

/// That of an opened file.
pub fn of<'a, R: ReadRef<'a>>(header: &Header, endian: LittleEndian, data: R) -> Option<String> {
    let segments = header.program_headers(endian, data).ok()?;
    let notes = segments
        .iter()
        .filter_map(|segment| segment.notes(endian, data).ok()?);
    for mut notes in notes {
        while let Ok(Some(note)) = notes.next() {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                let digits = note.desc().iter().map(|byte| format!("{byte:02x}"));
                return Some(digits.collect());
            }
        }
    }
    None
}
