//! What is written once and then meant by its number: `InternedData`. The numbers of each kind
//! begin at 1, as 0 stands for none.

use std::collections::HashMap;

use super::wire::Message;
use crate::{
    profile::{Frame, Stacks},
    report::profile::folded::frames,
};

/// Fields of `InternedData`.
const EVENT_CATEGORIES: u32 = 1;
const EVENT_NAMES: u32 = 2;
const ANNOTATION_NAMES: u32 = 3;
const FUNCTION_NAMES: u32 = 5;
const FRAMES: u32 = 6;
const CALLSTACKS: u32 = 7;
const BUILD_IDS: u32 = 16;
const MAPPING_PATHS: u32 = 17;
const SOURCE_PATHS: u32 = 18;
const MAPPINGS: u32 = 19;

/// `Frame.Kind`.
const KIND_NATIVE: u32 = 1;
const KIND_KERNEL: u32 = 2;

/// The numbers that were given, and what the next packet has to say of them.
#[derive(Default)]
pub struct Interned {
    categories: Table<String>,
    names: Table<String>,
    annotations: Table<String>,
    functions: Table<String>,
    build_ids: Table<Vec<u8>>,
    paths: Table<String>,
    sources: Table<String>,
    mappings: Table<(u64, u64)>,
    /// By their numbers in the profile.
    frames: Table<u32>,
    /// By their innermost nodes.
    stacks: Table<u32>,
    new: Message,
}

/// The numbers of one kind.
struct Table<K>(HashMap<K, u64>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: std::hash::Hash + Eq> Table<K> {
    /// The number of something, and whether it is new.
    fn number<Q: std::hash::Hash + Eq + ToOwned<Owned = K> + ?Sized>(
        &mut self,
        key: &Q,
    ) -> (u64, bool)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(&number) = self.0.get(key) {
            return (number, false);
        }
        let number = self.0.len() as u64 + 1;
        self.0.insert(key.to_owned(), number);
        (number, true)
    }
}

impl Interned {
    /// What was given a number since this was last called, to be written before it is meant.
    pub fn take_new(&mut self) -> Option<Message> {
        let new = std::mem::take(&mut self.new);
        (!new.is_empty()).then_some(new)
    }

    pub fn category(&mut self, name: &str) -> u64 {
        let (number, is_new) = self.categories.number(name);
        self.string(EVENT_CATEGORIES, (number, is_new), name.as_bytes())
    }

    pub fn name(&mut self, name: &str) -> u64 {
        let (number, is_new) = self.names.number(name);
        self.string(EVENT_NAMES, (number, is_new), name.as_bytes())
    }

    pub fn annotation(&mut self, name: &str) -> u64 {
        let (number, is_new) = self.annotations.number(name);
        self.string(ANNOTATION_NAMES, (number, is_new), name.as_bytes())
    }

    /// A stack, by its innermost node; nothing if it has no frames.
    pub fn stack(&mut self, stacks: &Stacks, node: u32) -> Option<u64> {
        let frames = frames(stacks, node);
        if frames.is_empty() {
            return None;
        }
        let (number, is_new) = self.stacks.number(&node);
        if is_new {
            let mut stack = Message::new().number(1, number);
            for (index, frame) in frames {
                stack = stack.number(2, self.frame(index, frame));
            }
            self.add(CALLSTACKS, &stack);
        }
        Some(number)
    }

    fn frame(&mut self, index: u32, frame: &Frame) -> u64 {
        let (number, is_new) = self.frames.number(&index);
        if !is_new {
            return number;
        }
        let name = self.functions.number(&*frame.function);
        let name = self.string(FUNCTION_NAMES, name, frame.function.as_bytes());
        // Readers leave out a stack if a frame of it has no mapping.
        let mapping = self.mapping(frame);
        let kind = match frame.is_kernel {
            true => KIND_KERNEL,
            false => KIND_NATIVE,
        };
        let mut message = Message::new().number(1, number).number(2, name);
        message = message.number(3, mapping);
        if let Some(source) = &frame.source {
            let (path, line) = source_place(source);
            let path_number = self.sources.number(path);
            let path = self.string(SOURCE_PATHS, path_number, path.as_bytes());
            message = message.number(5, path);
            if let Some(line) = line {
                message = message.number(6, line);
            }
        }
        self.add(FRAMES, &message.number(7, kind));
        number
    }

    fn mapping(&mut self, frame: &Frame) -> u64 {
        let build_id = frame.build_id.as_deref().map_or(0, |id| {
            let id = bytes_of(id);
            let number = self.build_ids.number(&*id);
            self.string(BUILD_IDS, number, &id)
        });
        let path = frame.module.as_deref().map_or(0, |path| {
            let number = self.paths.number(path);
            self.string(MAPPING_PATHS, number, path.as_bytes())
        });
        let (number, is_new) = self.mappings.number(&(build_id, path));
        if is_new {
            let mut mapping = Message::new().number(1, number);
            if build_id != 0 {
                mapping = mapping.number(2, build_id);
            }
            if path != 0 {
                mapping = mapping.number(7, path);
            }
            self.add(MAPPINGS, &mapping);
        }
        number
    }

    fn string(&mut self, field: u32, (number, is_new): (u64, bool), text: &[u8]) -> u64 {
        if is_new {
            self.add(field, &Message::new().number(1, number).bytes(2, text));
        }
        number
    }

    fn add(&mut self, field: u32, message: &Message) {
        self.new = std::mem::take(&mut self.new).message(field, message);
    }
}

/// `PATH:LINE` in its parts.
fn source_place(source: &str) -> (&str, Option<u32>) {
    match source.rsplit_once(':') {
        Some((path, line)) if line.parse::<u32>().is_ok() => (path, line.parse().ok()),
        _ => (source, None),
    }
}

/// A build id is in bytes there, and in hexadecimal here.
fn bytes_of(build_id: &str) -> Vec<u8> {
    let digits: Option<Vec<u8>> = build_id
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    match digits {
        Some(digits) if digits.len() % 2 == 0 => digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
        _ => build_id.as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_build_ids_are_taken_apart() {
        assert_eq!(source_place("/srv/a.js:12"), ("/srv/a.js", Some(12)));
        assert_eq!(source_place("node:internal"), ("node:internal", None));
        assert_eq!(bytes_of("00ff12"), [0, 0xff, 0x12]);
        assert_eq!(bytes_of("v8"), b"v8");
    }

    #[test]
    fn a_string_is_said_once() {
        let mut interned = Interned::default();
        assert_eq!(interned.name("a"), 1);
        assert_eq!(interned.category("a"), 1);
        assert!(interned.take_new().is_some());
        assert_eq!(interned.name("a"), 1);
        assert!(interned.take_new().is_none());
        assert_eq!(interned.name("b"), 2);
    }
}
