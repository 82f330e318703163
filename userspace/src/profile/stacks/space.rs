//! What executable memory each process had at a time, made from the records of its changes.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use framehop::{Unwinder as _, UnwinderNative};

use super::{
    elf::{Bytes, Image},
    files::VDSO,
    record::Mapping,
    store::ChangeKind,
};

/// Executables and libraries by their paths, each read once.
#[derive(Default)]
pub struct Images {
    known: HashMap<String, Option<u32>>,
    all: Vec<Rc<Image>>,
}

impl Images {
    fn open(&mut self, path: &str) -> Option<u32> {
        // `//anon`, `[heap]` and others are no files.
        let is_file = path.starts_with('/') && !path.starts_with("//");
        if !is_file && path != VDSO {
            return None;
        }
        if let Some(known) = self.known.get(path) {
            return *known;
        }
        let image = Image::read(path).map(|image| {
            self.all.push(Rc::new(image));
            (self.all.len() - 1) as u32
        });
        self.known.insert(path.to_owned(), image);
        image
    }

    pub fn get(&self, image: u32) -> &Rc<Image> {
        &self.all[image as usize]
    }

    /// Whether a program begins at about this place.
    pub fn is_entry(&self, place: Place) -> bool {
        match place {
            Place::Image { image, address } => self.get(image).is_entry(address),
            Place::Made { .. } | Place::Kernel(_) => false,
        }
    }
}

/// Where an address of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a file, at this address of it.
    Image {
        image: u32,
        address: u64,
    },
    /// In other memory of a process: it made this code itself, or its file is gone.
    Made {
        pid: i32,
        address: u64,
    },
    Kernel(u64),
}

#[derive(Clone, Debug)]
struct Mapped {
    end: u64,
    path: Rc<str>,
    image: Option<(u32, u64)>,
}

/// The executable memory of a process.
#[derive(Clone, Default)]
pub struct Space {
    mappings: BTreeMap<u64, Mapped>,
    pub unwinder: UnwinderNative<Bytes, framehop::MayAllocateDuringUnwind>,
}

impl Space {
    fn map(&mut self, mapping: &Mapping, images: &mut Images) {
        let image = images
            .open(&mapping.path)
            .and_then(|image| Some((image, images.get(image).bias(mapping)?)));
        // A part whose protection changed is told of again.
        let around = self
            .at(mapping.start)
            .filter(|around| image.is_some() && around.image == image && around.end >= mapping.end);
        if around.is_some() {
            return;
        }
        self.unmap(mapping.start, mapping.end);
        if let Some((image, bias)) = image {
            self.unwinder
                .add_module(images.get(image).module(mapping, bias));
        }
        let mapped = Mapped {
            end: mapping.end,
            path: mapping.path.as_str().into(),
            image,
        };
        self.mappings.insert(mapping.start, mapped);
    }

    /// What is replaced in part goes whole if it is of a file: the kernel tells of no unmapping, so it
    /// has most likely been unmapped before. Memory that a program makes code in grows and is cut.
    fn unmap(&mut self, start: u64, end: u64) {
        let before = self.mappings.range(..start).next_back();
        let before = before.filter(|(_, mapped)| mapped.end > start);
        let first = before.map_or(start, |(&first, _)| first);
        let hit: Vec<u64> = self.mappings.range(first..end).map(|(&at, _)| at).collect();
        for at in hit {
            let Some(mut mapped) = self.mappings.remove(&at) else {
                continue;
            };
            if mapped.image.is_some() {
                self.unwinder.remove_module(at);
                continue;
            }
            if mapped.end > end {
                self.mappings.insert(end, mapped.clone());
            }
            if at < start {
                mapped.end = start;
                self.mappings.insert(at, mapped);
            }
        }
    }

    fn at(&self, address: u64) -> Option<&Mapped> {
        let (_, mapped) = self.mappings.range(..=address).next_back()?;
        (address < mapped.end).then_some(mapped)
    }

    /// Whether there is code at an address.
    pub fn has(&self, address: u64) -> bool {
        self.at(address).is_some()
    }

    pub fn place(&self, pid: i32, address: u64) -> Place {
        match self.at(address).and_then(|mapped| mapped.image) {
            Some((image, bias)) => Place::Image {
                image,
                address: address.wrapping_sub(bias),
            },
            None => Place::Made { pid, address },
        }
    }

    /// What the memory at an address was called.
    pub fn name(&self, address: u64) -> Option<&str> {
        self.at(address).map(|mapped| &*mapped.path)
    }
}

/// The memory of all processes, at the time up to which changes were made.
#[derive(Default)]
pub struct Spaces {
    pub images: Images,
    processes: HashMap<i32, Space>,
}

impl Spaces {
    pub fn change(&mut self, pid: i32, kind: &ChangeKind) {
        match kind {
            ChangeKind::Mapped(mapping) => {
                let space = self.processes.entry(pid).or_default();
                space.map(mapping, &mut self.images);
            }
            ChangeKind::Executed => drop(self.processes.insert(pid, Space::default())),
            ChangeKind::Forked { parent } => {
                match self.processes.get(parent).cloned() {
                    Some(copy) => self.processes.insert(pid, copy),
                    // Of a pid that was another's before.
                    None => self.processes.remove(&pid),
                };
            }
        }
    }

    /// That of a process. None if it has executed nothing since the recording began.
    pub fn of(&self, pid: i32) -> Option<&Space> {
        self.processes.get(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(start: u64, end: u64, path: &str) -> ChangeKind {
        ChangeKind::Mapped(Mapping {
            start,
            end,
            offset: 0,
            path: path.to_owned(),
        })
    }

    #[test]
    fn a_fork_copies_and_an_execution_clears() {
        let mut spaces = Spaces::default();
        spaces.change(1, &mapped(0x1000, 0x2000, "//anon"));
        spaces.change(2, &ChangeKind::Forked { parent: 1 });
        spaces.change(1, &ChangeKind::Executed);
        assert!(!spaces.of(1).unwrap().has(0x1800));
        assert!(spaces.of(2).unwrap().has(0x1800));
        assert!(!spaces.of(2).unwrap().has(0x2000));
    }

    #[test]
    fn a_later_mapping_cuts_an_earlier_one() {
        let mut spaces = Spaces::default();
        spaces.change(1, &mapped(0x1000, 0x5000, "//anon"));
        spaces.change(1, &mapped(0x2000, 0x3000, "/no/such/file"));
        let space = spaces.of(1).unwrap();
        assert_eq!(space.name(0x1fff), Some("//anon"));
        assert_eq!(space.name(0x2000), Some("/no/such/file"));
        assert_eq!(space.name(0x4fff), Some("//anon"));
        assert_eq!(space.name(0x5000), None);
    }
}
