//! Executables and libraries: where they were mapped, and how to unwind them.

use std::sync::Arc;

use framehop::{ExplicitModuleSectionInfo, Module};
use gimli::{BaseAddresses, EhFrame, EhFrameHdr, NativeEndian, UnwindSection as _};
use object::{
    LittleEndian, elf,
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable},
};

use super::{
    files::{self, Contents},
    record::Mapping,
};
use crate::build_id;

/// Larger sections are left alone: debug information that would take longer to read than it is worth.
const LARGEST_SECTION: u64 = 256 << 20;

/// Part of a file; many processes share it.
pub type Bytes = Arc<[u8]>;

type Header = elf::FileHeader64<LittleEndian>;

/// An ELF file of 64 bits, opened.
pub struct Opened<'a> {
    data: &'a Contents,
    endian: LittleEndian,
    header: &'a Header,
    pub sections: SectionTable<'a, Header, &'a Contents>,
}

impl<'a> Opened<'a> {
    pub fn new(data: &'a Contents) -> Option<Self> {
        let header = Header::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, data).ok()?;
        Some(Self {
            data,
            endian,
            header,
            sections,
        })
    }

    /// The address and contents of a section that is neither compressed nor too large.
    pub fn section(&self, name: &str) -> Option<(u64, &'a [u8])> {
        let (_, section) = self
            .sections
            .section_by_name(self.endian, name.as_bytes())?;
        let is_compressed = section.sh_flags(self.endian) & u64::from(elf::SHF_COMPRESSED) != 0;
        if is_compressed || section.sh_size(self.endian) > LARGEST_SECTION {
            return None;
        }
        let data = section.data(self.endian, self.data).ok()?;
        (!data.is_empty()).then(|| (section.sh_addr(self.endian), data))
    }

    /// A table of symbols and the names in it.
    pub fn symbols(&self, kind: u32) -> Option<(&'a [elf::Sym64<LittleEndian>], &'a [u8])> {
        let mut all = self.sections.iter();
        let table = all.find(|section| section.sh_type(self.endian) == kind)?;
        let symbols = table.data_as_array(self.endian, self.data).ok()?;
        let names = self.sections.section(table.link(self.endian)).ok()?;
        let names = names.data(self.endian, self.data).ok()?;
        (!symbols.is_empty()).then_some((symbols, names))
    }

    fn build_id(&self) -> Option<String> {
        build_id::of(self.header, self.endian, self.data)
    }
}

/// What is loaded of a file: by offset and length in the file, and address.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    length: u64,
    address: u64,
}

/// An executable or library, as far as unwinding needs it.
#[derive(Debug)]
pub struct Image {
    pub path: String,
    pub build_id: Option<String>,
    /// Where the kernel starts it, if it is a program or the dynamic linker.
    entry: u64,
    segments: Vec<Segment>,
    unwinding: ExplicitModuleSectionInfo<Bytes>,
}

impl Image {
    /// Reads a file. None if it is gone or something else.
    pub fn read(path: &str) -> Option<Self> {
        let contents = files::contents(path)?;
        let opened = Opened::new(&contents)?;
        let endian = opened.endian;
        let headers = opened.header.program_headers(endian, opened.data).ok()?;
        let loaded = headers
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD);
        let segments = loaded.map(|header| Segment {
            offset: header.p_offset(endian),
            length: header.p_filesz(endian),
            address: header.p_vaddr(endian),
        });
        let part = |name| {
            let (address, data) = opened.section(name)?;
            let end = address.checked_add(data.len() as u64)?;
            Some((address..end, Bytes::from(data)))
        };
        let addresses = |name: &str| {
            let (_, section) = opened.sections.section_by_name(endian, name.as_bytes())?;
            let start = section.sh_addr(endian);
            Some(start..start.checked_add(section.sh_size(endian))?)
        };
        let (eh_frame_svma, eh_frame) = part(".eh_frame").unzip();
        let (eh_frame_hdr_svma, eh_frame_hdr) = part(".eh_frame_hdr").unzip();
        Some(Self {
            path: path.to_owned(),
            build_id: opened.build_id(),
            entry: opened.header.e_entry(endian),
            segments: segments.collect(),
            unwinding: ExplicitModuleSectionInfo {
                base_svma: 0,
                text_svma: addresses(".text"),
                got_svma: addresses(".got"),
                // Only where there is no other: else it is a large part of debug information.
                debug_frame: match eh_frame {
                    None => part(".debug_frame").map(|(_, data)| data),
                    Some(_) => None,
                },
                eh_frame_svma,
                eh_frame,
                eh_frame_hdr_svma,
                eh_frame_hdr,
                ..ExplicitModuleSectionInfo::default()
            },
        })
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// What has to be added to addresses in the file to get those in memory, modulo 2^64.
    pub fn bias(&self, mapping: &Mapping) -> Option<u64> {
        // A segment's first page may begin before it, and its last end after it.
        let page = rustix::param::page_size() as u64;
        let segment = self.segments.iter().find(|segment| {
            let start = segment.offset & !(page - 1);
            let end = segment.offset.saturating_add(segment.length);
            (start..end.max(start + 1)).contains(&mapping.offset)
        })?;
        let address = mapping
            .offset
            .wrapping_add(segment.address)
            .wrapping_sub(segment.offset);
        Some(mapping.start.wrapping_sub(address))
    }

    /// Tells how to unwind code in a mapping of the file.
    pub fn module(&self, mapping: &Mapping, bias: u64) -> Module<Bytes> {
        // It does not use the name.
        Module::new(
            String::new(),
            mapping.start..mapping.end,
            bias,
            self.unwinding.clone(),
        )
    }

    /// Whether an address in the file is of the code that the kernel starts.
    pub fn is_entry(&self, address: u64) -> bool {
        // It is in assembly and often has no table: it only calls another.
        const LONGEST: u64 = 64;
        self.entry != 0 && (self.entry..self.entry.saturating_add(LONGEST)).contains(&address)
    }

    /// The begin of the function at an address in the file, of which nothing but how to unwind it
    /// needs to be known.
    pub fn function(&self, address: u64) -> Option<u64> {
        let info = &self.unwinding;
        let start = |range: &Option<std::ops::Range<u64>>| range.as_ref().map_or(0, |it| it.start);
        let bases = BaseAddresses::default()
            .set_eh_frame(start(&info.eh_frame_svma))
            .set_eh_frame_hdr(start(&info.eh_frame_hdr_svma))
            .set_text(start(&info.text_svma))
            .set_got(start(&info.got_svma));
        let index = EhFrameHdr::new(info.eh_frame_hdr.as_deref()?, NativeEndian);
        let index = index.parse(&bases, 8).ok()?;
        let mut frames = EhFrame::new(info.eh_frame.as_deref()?, NativeEndian);
        frames.set_address_size(8);
        let frame = index
            .table()?
            .fde_for_address(&frames, &bases, address, EhFrame::cie_from_offset)
            .ok()?;
        Some(frame.initial_address())
    }
}
