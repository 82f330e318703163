//! The functions of executables and libraries, by their symbols, and where they were written, by debug
//! information if there is any.

use std::sync::Arc;

use gimli::{EndianArcSlice, NativeEndian};
use object::{LittleEndian, elf};

use super::{
    elf::{Image, Opened},
    files,
};

type Reader = EndianArcSlice<NativeEndian>;

/// The functions of a file.
#[derive(Default)]
pub struct Symbols {
    functions: Vec<Function>,
    names: Vec<u8>,
    lines: Option<addr2line::Context<Reader>>,
}

#[derive(Clone, Copy, Debug)]
struct Function {
    start: u64,
    /// 0 if it is not known: up to the next.
    length: u64,
    /// An index of the names.
    name: u32,
}

/// A function that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub function: String,
    pub source: Option<String>,
}

impl Symbols {
    /// Reads those of an image: its own, or those that were installed apart from it.
    pub fn read(image: &Image) -> Self {
        let apart = image
            .build_id
            .as_deref()
            .and_then(|id| id.split_at_checked(2))
            .map(|(first, rest)| format!("/usr/lib/debug/.build-id/{first}/{rest}.debug"));
        let own = files::contents(&image.path);
        let apart = apart.and_then(|path| files::contents(&path));
        let own = own.as_ref().and_then(Opened::new);
        let apart = apart.as_ref().and_then(Opened::new);
        let [own, apart] = [own.as_ref(), apart.as_ref()];
        let table = [
            (own, elf::SHT_SYMTAB),
            (apart, elf::SHT_SYMTAB),
            (own, elf::SHT_DYNSYM),
        ];
        let table = table
            .into_iter()
            .find_map(|(file, kind)| file?.symbols(kind));
        let (symbols, names) = table.unwrap_or_default();
        Self {
            functions: functions(symbols, names),
            names: names.to_vec(),
            lines: [own, apart].into_iter().flatten().find_map(lines),
        }
    }

    /// The function at an address in the file.
    pub fn look_up(&self, address: u64) -> Option<Named> {
        let after = self.functions.partition_point(|it| it.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        if function.length != 0 && address - function.start >= function.length {
            return None;
        }
        let name = text(&self.names, function.name)?;
        Some(Named {
            function: demangle(name),
            source: self.source(function.start),
        })
    }

    /// Where the code at an address was written: a file and line.
    pub fn source(&self, address: u64) -> Option<String> {
        let location = self.lines.as_ref()?.find_location(address).ok()??;
        let file = location.file?;
        Some(match location.line {
            Some(line) => format!("{file}:{line}"),
            None => file.to_owned(),
        })
    }
}

/// One function for each address, in the order of addresses.
fn functions(symbols: &[elf::Sym64<LittleEndian>], names: &[u8]) -> Vec<Function> {
    let endian = LittleEndian;
    let mut all: Vec<_> = symbols
        .iter()
        .filter(|symbol| matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC))
        .filter(|symbol| symbol.st_shndx.get(endian) != elf::SHN_UNDEF)
        .map(|symbol| {
            let name = symbol.st_name.get(endian);
            let function = Function {
                start: symbol.st_value.get(endian),
                length: symbol.st_size.get(endian),
                name,
            };
            // Of several names, the one that others call it by.
            let is_inner = names.get(name as usize) == Some(&b'_');
            let is_local = symbol.st_bind() == elf::STB_LOCAL;
            (function, (function.length == 0, is_inner, is_local))
        })
        .collect();
    all.sort_by_key(|(function, rank)| (function.start, *rank));
    all.dedup_by_key(|(function, _)| function.start);
    all.into_iter().map(|(function, _)| function).collect()
}

fn text(names: &[u8], at: u32) -> Option<&str> {
    let rest = names.get(at as usize..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end])
        .ok()
        .filter(|name| !name.is_empty())
}

/// The tables of lines of a file. They are understood as they are asked for.
fn lines(file: &Opened<'_>) -> Option<addr2line::Context<Reader>> {
    file.section(".debug_line")?;
    file.section(".debug_info")?;
    let dwarf = gimli::Dwarf::load(|id| {
        let data = file.section(id.name()).map_or(&[][..], |(_, data)| data);
        Ok::<_, gimli::Error>(EndianArcSlice::new(Arc::from(data), NativeEndian))
    });
    addr2line::Context::from_dwarf(dwarf.ok()?).ok()
}

/// The name that a person wrote, without parameters.
pub fn demangle(name: &str) -> String {
    // The linker adds versions: "memcpy@@GLIBC_2.14".
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    if name.starts_with("_Z") {
        let options = cpp_demangle::DemangleOptions::new()
            .no_params()
            .no_return_type();
        let cpp = cpp_demangle::Symbol::new(name)
            .ok()
            .and_then(|symbol| symbol.demangle_with_options(&options).ok());
        if let Some(cpp) = cpp {
            return cpp;
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_they_were_written() {
        assert_eq!(
            demangle("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"),
            "core::fmt::Write::write_fmt"
        );
        assert_eq!(demangle("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(
            demangle("_ZN4node5StartEiPPc"),
            "node::Start",
            "without parameters"
        );
        assert_eq!(demangle("memcpy@@GLIBC_2.14"), "memcpy");
        assert_eq!(demangle("main"), "main");
    }

    #[test]
    fn an_address_beyond_a_function_is_not_its() {
        let symbols = Symbols {
            functions: vec![
                Function {
                    start: 0x100,
                    length: 0x10,
                    name: 1,
                },
                Function {
                    start: 0x200,
                    length: 0,
                    name: 5,
                },
            ],
            names: b"\0one\0two\0".to_vec(),
            lines: None,
        };
        let name = |address| symbols.look_up(address).map(|named| named.function);
        assert_eq!(name(0xff), None);
        assert_eq!(name(0x10f).as_deref(), Some("one"));
        assert_eq!(name(0x110), None);
        assert_eq!(name(0x300).as_deref(), Some("two"), "its end is not known");
    }
}
