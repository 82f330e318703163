//! Finds the offsets of structure members in the kernel's BTF.
//!
//! aya relocates field accesses of C programs only, and keeps its BTF types to itself; the
//! probe, in Rust, is told the offsets as a global. The format is that of
//! `Documentation/bpf/btf.rst` of the kernel.

use std::collections::HashMap;

const MAGIC: u16 = 0xEB9F;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why an offset is not to be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    #[error("not BTF, or cut short")]
    Malformed,
    #[error("the kernel has no {structure}.{member}")]
    NoMember { structure: String, member: String },
}

/// How many structures are looked into for a member, and how many names stand for another, at most:
/// what takes more goes in a circle.
const MOST_STEPS: usize = 1000;

/// The types of a BTF blob, in the order of their ids.
pub struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type<'a>>,
    structures: HashMap<&'a str, usize>,
}

struct Type<'a> {
    name: u32,
    kind: u32,
    /// Bit offsets of members carry a bit-field size in their upper byte.
    has_bit_fields: bool,
    /// The type referred to, for modifiers and typedefs.
    target: u32,
    members: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Indexes a BTF blob, in the byte order of this machine.
    ///
    /// # Errors
    /// [`BtfError::Malformed`].
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        Self::index(data).ok_or(BtfError::Malformed)
    }

    fn index(data: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = word(data, 4)? as usize;
        let section = |at| -> Option<&'a [u8]> {
            let (start, len) = (word(data, at)? as usize, word(data, at + 4)? as usize);
            data.get(header + start..)?.get(..len)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        // Id 0 is void.
        let void = Type {
            name: 0,
            kind: 0,
            has_bit_fields: false,
            target: 0,
            members: &[],
        };
        let mut btf = Self {
            strings,
            types: vec![void],
            structures: HashMap::new(),
        };
        while !rest.is_empty() {
            let (name, info, target) = (word(rest, 0)?, word(rest, 4)?, word(rest, 8)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let extra = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let members = rest.get(12..12 + extra)?;
            rest = rest.get(12 + extra..)?;
            if kind == KIND_STRUCT {
                let id = btf.types.len();
                btf.structures.entry(btf.name(name)?).or_insert(id);
            }
            btf.types.push(Type {
                name,
                kind,
                has_bit_fields: info >> 31 == 1,
                target,
                members,
            });
        }
        Some(btf)
    }

    /// The byte offset of a member, which may be named through others (`a.b`) and stand in
    /// unnamed structures and unions.
    ///
    /// # Errors
    /// [`BtfError::NoMember`].
    pub fn offset(&self, structure: &str, member: &str) -> Result<u32, BtfError> {
        let find = || {
            let mut id = *self.structures.get(structure)?;
            let mut bits = 0;
            for part in member.split('.') {
                let (offset, next) = self.member(id, part, &mut { MOST_STEPS })?;
                bits = offset.checked_add(bits)?;
                id = self.resolve(next);
            }
            Some(bits / 8)
        };
        find().ok_or_else(|| BtfError::NoMember {
            structure: structure.to_owned(),
            member: member.to_owned(),
        })
    }

    /// The offset in bits and the type of a member, looked for in no more structures than are left.
    fn member(&self, id: usize, wanted: &str, left: &mut usize) -> Option<(u32, usize)> {
        *left = left.checked_sub(1)?;
        let structure = self.types.get(id)?;
        for entry in structure.members.chunks_exact(12) {
            let (name, target) = (self.name(word(entry, 0)?)?, word(entry, 4)? as usize);
            let bits = match (word(entry, 8)?, structure.has_bit_fields) {
                (offset, true) => offset & 0xff_ffff,
                (offset, false) => offset,
            };
            if name == wanted {
                return Some((bits, target));
            }
            let inner = self.resolve(target);
            let is_unnamed =
                name.is_empty() && matches!(self.types.get(inner)?.kind, KIND_STRUCT | KIND_UNION);
            if is_unnamed && let Some((more, target)) = self.member(inner, wanted, left) {
                return Some((bits.checked_add(more)?, target));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers to the type itself.
    fn resolve(&self, mut id: usize) -> usize {
        for _ in 0..MOST_STEPS {
            match self.types.get(id) {
                Some(found)
                    if matches!(
                        found.kind,
                        KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_TYPE_TAG
                    ) =>
                {
                    id = found.target as usize;
                }
                _ => break,
            }
        }
        id
    }

    fn name(&self, at: u32) -> Option<&'a str> {
        let bytes = self.strings.get(at as usize..)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// The names of all types, functions and variables, those without a name left out.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.types
            .iter()
            .filter_map(|t| self.name(t.name))
            .filter(|name| !name.is_empty())
    }

    /// The members of a structure, with their offsets in bytes; empty if there is none.
    pub fn members(&self, structure: &str) -> Vec<(&'a str, u32)> {
        let Some(found) = self
            .structures
            .get(structure)
            .and_then(|&id| self.types.get(id))
        else {
            return vec![];
        };
        let offset = |bits: u32| {
            (if found.has_bit_fields {
                bits & 0xff_ffff
            } else {
                bits
            }) / 8
        };
        found
            .members
            .chunks_exact(12)
            .filter_map(|entry| Some((self.name(word(entry, 0)?)?, offset(word(entry, 8)?))))
            .collect()
    }

    /// Whether the kernel has a tracepoint of this name that a probe can attach to.
    pub fn has_tracepoint(&self, wanted: &str) -> bool {
        let wanted = format!("btf_trace_{wanted}");
        self.types
            .iter()
            .any(|t| t.kind == KIND_TYPEDEF && self.name(t.name) == Some(&wanted))
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_the_running_kernel_are_found() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let btf = Btf::parse(&data).unwrap();
        // Known from the user-space ABI, so the same on every kernel of the architecture.
        assert_eq!(btf.offset("sockaddr_in", "sin_port"), Ok(2));
        // Inside an unnamed union of a named structure.
        assert!(btf.offset("sock", "__sk_common.skc_num").is_ok());
        for (structure, member) in probe_ebpf::KERNEL_MEMBERS {
            btf.offset(structure, member).unwrap();
        }
        assert!(btf.has_tracepoint("sys_enter"));
        assert!(!btf.has_tracepoint("no_such_tracepoint"));
    }

    #[test]
    fn what_is_missing_or_malformed_is_an_error() {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let btf = Btf::parse(&data).unwrap();
        let missing = btf.offset("sock", "no_such_member").unwrap_err();
        assert_eq!(missing.to_string(), "the kernel has no sock.no_such_member");
        assert_eq!(Btf::parse(b"not BTF").err(), Some(BtfError::Malformed));
        assert_eq!(Btf::parse(&data[..4096]).err(), Some(BtfError::Malformed));
    }

    #[test]
    fn types_in_a_circle_end() {
        let strings = b"\0sock\0";
        let unnamed = |target: u32| [0, target, 0];
        let types: Vec<u32> = [
            // A structure with two unnamed members, both itself, and a name that stands for itself.
            &[1, KIND_STRUCT << 24 | 2, 8][..],
            &unnamed(1),
            &unnamed(1),
            &[1, KIND_TYPEDEF << 24, 2],
        ]
        .concat();
        let len = 4 * types.len() as u32;
        let header = [0x0001_eb9f, 24, 0, len, len, strings.len() as u32];
        let words = header.into_iter().chain(types);
        let data: Vec<u8> = words.flat_map(u32::to_ne_bytes).chain(*strings).collect();
        let btf = Btf::parse(&data).unwrap();
        assert!(btf.offset("sock", "sk").is_err());
        assert_eq!(btf.resolve(2), 2);
    }
}
