//! Watches for system calls that a signal interrupts while they wait for the guard of mapped memory.
//!
//! The program (`probe-ebpf/src/interruptions.rs`) is loaded by calls of our own and not by aya's
//! loader, which takes some milliseconds to read the kernel's type information; this one needs none.

use std::{
    collections::HashSet,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use aya::maps::{Map, MapData, RingBuf};
use aya_obj::{Object, generated::bpf_insn};
use probe_ebpf as probe;

use crate::sys::{self, bpf::MapShape};

pub use probe::Interruption;

/// The program, built from `probe-ebpf` by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interruptions"));

/// The attached program.
pub struct Interruptions {
    /// Detaches it when closed.
    _link: OwnedFd,
    events: RingBuf<MapData>,
}

impl Interruptions {
    /// Watches all tasks of the caller's pid namespace.
    ///
    /// # Errors
    /// What bpf(2) says: `EPERM` without CAP_BPF and CAP_PERFMON. `InvalidData` if the program is not
    /// what it should be.
    pub fn watch() -> io::Result<Self> {
        Self::attach(own_namespace()?)
    }

    fn attach(tasks: probe::Namespace) -> io::Result<Self> {
        let mut object = Object::parse(OBJECT).map_err(unusable)?;
        let maps: io::Result<Vec<_>> = object
            .maps
            .iter()
            .map(|(name, map)| {
                let shape = MapShape {
                    kind: map.map_type(),
                    key_size: map.key_size(),
                    value_size: map.value_size(),
                    entries: map.max_entries(),
                    flags: map.map_flags(),
                };
                let fd = sys::bpf::create_map(shape)?;
                Ok((name.clone(), fd, shape, map.clone()))
            })
            .collect();
        let maps = maps?;
        let named = |name: &str| maps.iter().find(|map| map.0 == name).ok_or_else(missing);
        let (_, namespace, shape, _) = named("NAMESPACE")?;
        sys::bpf::set(namespace.as_fd(), *shape, 0, bytemuck::bytes_of(&tasks))?;

        let text: HashSet<_> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let descriptors = maps
            .iter()
            .map(|(name, fd, _, map)| (name.as_str(), fd.as_raw_fd(), map));
        object.relocate_maps(descriptors, &text).map_err(unusable)?;
        object.relocate_calls(&text).map_err(unusable)?;
        let program = object.programs.values().next().ok_or_else(missing)?;
        let function = object.functions.get(&program.function_key());
        let code = &function.ok_or_else(missing)?.instructions;
        let code: Vec<_> = code.iter().map(bytes_of).collect();
        let program = sys::bpf::load_for_raw_tracepoint(&code, &program.license)?;

        let events = named("INTERRUPTED")?.1.try_clone()?;
        let events = MapData::from_fd(events).map_err(io::Error::other)?;
        let events = RingBuf::try_from(Map::RingBuf(events)).map_err(io::Error::other)?;
        let link = sys::bpf::attach_to_raw_tracepoint(c"signal_deliver", program.as_fd())?;
        Ok(Self {
            _link: link,
            events,
        })
    }

    /// Becomes readable with an interruption.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The next interruption that has come.
    pub fn take(&mut self) -> Option<Interruption> {
        let item = self.events.next()?;
        bytemuck::try_pod_read_unaligned(&item).ok()
    }
}

/// Keeps the tracepoint in use while it lives. Where nothing is attached to it any more, the next to be
/// attached first waits for the grace periods of RCU, up to 20 ms: what restores again and again should not.
pub struct Held {
    _attached: Interruptions,
}

impl Held {
    /// # Errors
    /// As of [`Interruptions::watch`].
    pub fn hold() -> io::Result<Self> {
        // No namespace has such a number.
        let nobody = probe::Namespace {
            device: 0,
            inode: 0,
        };
        let attached = Interruptions::attach(nobody)?;
        Ok(Self {
            _attached: attached,
        })
    }
}

fn own_namespace() -> io::Result<probe::Namespace> {
    /// Bits of the minor number, in the kernel's own kind of device numbers.
    const MINOR: u32 = 20;
    let found = fs::metadata("/proc/self/ns/pid")?;
    let (major, minor) = (libc::major(found.dev()), libc::minor(found.dev()));
    Ok(probe::Namespace {
        device: u64::from(major << MINOR | minor),
        inode: found.ino(),
    })
}

/// An instruction as it lies in memory; see instruction-set.rst of the kernel.
fn bytes_of(instruction: &bpf_insn) -> sys::bpf::Code {
    let registers = instruction.src_reg() << 4 | instruction.dst_reg();
    let [off_low, off_high] = instruction.off.to_le_bytes();
    let [a, b, c, d] = instruction.imm.to_le_bytes();
    [instruction.code, registers, off_low, off_high, a, b, c, d]
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn missing() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_is_attached_in_no_time() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: to load eBPF programs takes root");
            return;
        }
        for _ in 0..5 {
            let begun = Instant::now();
            let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let interruptions = Interruptions::watch().unwrap();
            let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            println!(
                "attached in {:?}, of which {} µs of CPU time",
                begun.elapsed(),
                (after.tv_sec - cpu.tv_sec) * 1_000_000 + (after.tv_nsec - cpu.tv_nsec) / 1000
            );
            drop(interruptions);
        }
    }
}
