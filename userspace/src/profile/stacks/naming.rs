//! Gives every address that a stack has a name.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::SystemTime,
};

use super::{
    kallsyms::Kernel,
    perf_map::{self, PerfMap},
    space::{Images, Place, Space, Spaces},
    symbols::Symbols,
    tree::Tree,
};
use crate::profile::Frame;

/// The name of the frame below stacks that do not go on to where the thread began.
const CUT: &str = "[cut short]";

/// Names, each looked up once. Files are read when the first address in them is.
pub struct Naming<'a> {
    /// The pids of processes as they see them, by those in the initial namespace.
    pids: &'a HashMap<i32, i32>,
    started: SystemTime,
    frames: HashMap<Place, u32>,
    symbols: HashMap<u32, Symbols>,
    perf_maps: HashMap<i32, PerfMap>,
    kernel: Option<Kernel>,
    cut: Option<u32>,
}

impl<'a> Naming<'a> {
    pub fn new(pids: &'a HashMap<i32, i32>, started: SystemTime) -> Self {
        Self {
            pids,
            started,
            frames: HashMap::new(),
            symbols: HashMap::new(),
            perf_maps: HashMap::new(),
            kernel: None,
            cut: None,
        }
    }

    /// The frame of an address.
    pub fn frame(&mut self, place: Place, spaces: &Spaces, tree: &mut Tree) -> u32 {
        if let Some(&frame) = self.frames.get(&place) {
            return frame;
        }
        let frame = match place {
            Place::Image { image, address } => self.in_image(image, address, &spaces.images),
            Place::Made { pid, address } => self.made(pid, address, spaces.of(pid)),
            Place::Kernel(address) => self.in_kernel(address),
        };
        let frame = tree.frame(frame);
        self.frames.insert(place, frame);
        frame
    }

    /// The frame below stacks whose begin is not known.
    pub fn cut(&mut self, tree: &mut Tree) -> u32 {
        *self.cut.get_or_insert_with(|| {
            tree.frame(Frame {
                function: CUT.to_owned(),
                module: None,
                build_id: None,
                source: None,
                is_kernel: false,
            })
        })
    }

    fn in_image(&mut self, image: u32, address: u64, images: &Images) -> Frame {
        let file = images.get(image);
        let symbols = match self.symbols.entry(image) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Symbols::read(file)),
        };
        let (function, source) = match symbols.look_up(address) {
            Some(named) => (named.function, named.source),
            // As linkers call it.
            None if file.is_entry(address) => ("_start".to_owned(), None),
            // The begin of the function, if that can be told, so that it is one.
            None => {
                let start = file.function(address).unwrap_or(address);
                (format!("{start:#x}"), symbols.source(start))
            }
        };
        Frame {
            function,
            module: Some(file.name().to_owned()),
            build_id: file.build_id.clone(),
            source,
            is_kernel: false,
        }
    }

    fn made(&mut self, pid: i32, address: u64, space: Option<&Space>) -> Frame {
        let started = self.started;
        let own_pid = self.pids.get(&pid).copied().unwrap_or(pid);
        let map = self.perf_maps.entry(pid);
        let map = map.or_insert_with(|| PerfMap::read(own_pid, started));
        let (function, source, module) = match map.look_up(address) {
            Some(name) => {
                let (function, source) = perf_map::split(name);
                (function, source, Some("[jit]".to_owned()))
            }
            None => {
                let name = space.and_then(|space| space.name(address));
                let name = name.map(|path| match path {
                    "//anon" => "[anonymous]".to_owned(),
                    path => path.rsplit('/').next().unwrap_or(path).to_owned(),
                });
                // All of it is one, as addresses mean nothing where code is made anew each time.
                let function = name.clone().unwrap_or_else(|| format!("{address:#x}"));
                (function, None, name)
            }
        };
        Frame {
            function,
            module,
            build_id: None,
            source,
            is_kernel: false,
        }
    }

    fn in_kernel(&mut self, address: u64) -> Frame {
        let kernel = self.kernel.get_or_insert_with(Kernel::read);
        let (function, module) = match kernel.look_up(address) {
            Some((function, module)) => (function.to_owned(), module),
            None => (format!("{address:#x}"), None),
        };
        Frame {
            function,
            module: Some(module.unwrap_or("[kernel]").to_owned()),
            build_id: None,
            source: None,
            is_kernel: true,
        }
    }
}
