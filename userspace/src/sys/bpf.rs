//! bpf(2), as far as it takes to load one small program. A library that does more of it first learns
//! the types and features of the kernel, which takes longer than the restore of a small server.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use procfs::process::{MMapPath, MemoryMap};

use super::check;

/// One instruction, as linux/bpf.h has it.
pub type Code = [u8; 8];

/// What a map is; see bpf(2).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub entries: u32,
    pub flags: u32,
}

/// Commands of bpf(2).
const MAP_CREATE: u32 = 0;
const MAP_UPDATE_ELEM: u32 = 2;
const PROG_LOAD: u32 = 5;
const RAW_TRACEPOINT_OPEN: u32 = 17;

/// Keeps the mapped eBPF maps of this process out of those that it forks, to which they are of no use: to
/// copy the page tables of a large ring takes longer than a restore.
///
/// # Errors
/// If /proc/self/maps cannot be read, or what madvise(2) says.
pub fn keep_maps_from_children() -> io::Result<()> {
    let maps = procfs::process::Process::myself().and_then(|own| own.maps());
    let is_bpf = |map: &&MemoryMap| matches!(&map.pathname, MMapPath::Path(path) if path.ends_with("anon_inode:bpf-map"));
    for map in maps.map_err(io::Error::other)?.iter().filter(is_bpf) {
        let (start, end) = map.address;
        // SAFETY: the memory stays what it is here; a child has no reference into a ring that it reads.
        let outcome = unsafe {
            libc::madvise(
                ptr::with_exposed_provenance_mut(start as usize),
                (end - start) as usize,
                libc::MADV_DONTFORK,
            )
        };
        check(outcome)?;
    }
    Ok(())
}

/// Makes a map.
///
/// # Errors
/// What bpf(2) says: `EPERM` without CAP_BPF.
pub fn create_map(shape: MapShape) -> io::Result<OwnedFd> {
    open(MAP_CREATE, shape)
}

/// Sets a value of an array. The value has to be of the size of the map's values.
///
/// # Errors
/// What bpf(2) says, and `EINVAL` if the value is of another size.
pub fn set(map: BorrowedFd<'_>, shape: MapShape, key: u32, value: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    if shape.key_size as usize != size_of::<u32>() || shape.value_size as usize != value.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let update = Update {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key).addr() as u64,
        value: value.as_ptr().addr() as u64,
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, update).map(drop)
}

/// Loads a program for raw tracepoints.
///
/// # Errors
/// What bpf(2) says: `EPERM` without CAP_BPF, `EACCES` or `EINVAL` if the kernel refuses it.
pub fn load_for_raw_tracepoint(code: &[Code], license: &CStr) -> io::Result<OwnedFd> {
    const RAW_TRACEPOINT: u32 = 17;
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: RAW_TRACEPOINT,
        count: code.len() as u32,
        code: code.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    open(PROG_LOAD, load)
}

/// Attaches a program, as long as the result is open.
///
/// # Errors
/// What bpf(2) says: `ENOENT` if there is no such tracepoint.
pub fn attach_to_raw_tracepoint(name: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attach {
        name: u64,
        program: u32,
        padding: u32,
    }
    let attach = Attach {
        name: name.as_ptr().addr() as u64,
        program: program.as_raw_fd() as u32,
        padding: 0,
    };
    open(RAW_TRACEPOINT_OPEN, attach)
}

fn open<T>(command: u32, attributes: T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just made the descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: u32, mut attributes: T) -> io::Result<i32> {
    let (address, size) = (&raw mut attributes, size_of::<T>());
    // SAFETY: the callers are above: `T` is the beginning of `union bpf_attr` for the command, and
    // what it points to outlives the call. The kernel takes what is behind for zeros.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, address, size) as i32 })
}
