//! perf_event_open(2): counters of the kernel, and the rings that it writes their records to.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::{Pod, Zeroable};

use super::{OwnsDescriptor, check};

/// `struct perf_event_attr` of linux/perf_event.h, as of Linux 4.8.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Attributes {
    pub kind: u32,
    /// Filled in by [`open`].
    pub size: u32,
    pub config: u64,
    pub sample_period: u64,
    pub sample_type: u64,
    pub read_format: u64,
    pub flags: u64,
    pub wakeup_watermark: u32,
    pub breakpoint_type: u32,
    pub config1: u64,
    pub config2: u64,
    pub branch_sample_type: u64,
    pub sample_regs_user: u64,
    pub sample_stack_user: u32,
    pub clock: i32,
    pub sample_regs_interrupt: u64,
    pub aux_watermark: u32,
    pub sample_max_stack: u16,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Attributes>() == 112, "PERF_ATTR_SIZE_VER5");

/// Opens an event of a thread, and of all it makes later if so asked, on one processor.
///
/// # Errors
/// What perf_event_open(2) says: `EACCES` or `EPERM` without CAP_PERFMON, `ENODEV` if the processor is
/// offline, `ESRCH` if there is no such thread.
pub fn open(mut attributes: Attributes, tid: i32, processor: u32) -> io::Result<OwnedFd> {
    const NO_GROUP: i32 = -1;
    const CLOSE_ON_EXEC: u64 = 8;
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: `attributes` is of the size that it says, and outlives the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw mut attributes,
            tid,
            processor,
            NO_GROUP,
            CLOSE_ON_EXEC,
        ) as i32
    })?;
    // SAFETY: the kernel has just made it, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number that the records of an event bear, those of inherited copies too.
///
/// # Errors
/// What ioctl(2) says.
pub fn id(event: BorrowedFd<'_>) -> io::Result<u64> {
    const PERF_EVENT_IOC_ID: libc::Ioctl = 0x8008_2407_u32 as libc::Ioctl;
    let mut id = 0_u64;
    // SAFETY: the request writes a number of this size, which outlives the call.
    check(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ID, &raw mut id) })?;
    Ok(id)
}

/// Has the records of an event written to the ring of another on the same processor.
///
/// # Errors
/// What ioctl(2) says.
pub fn share_ring(event: BorrowedFd<'_>, with: &Ring) -> io::Result<()> {
    const PERF_EVENT_IOC_SET_OUTPUT: libc::Ioctl = 0x2405;
    // SAFETY: takes numbers only.
    check(unsafe {
        libc::ioctl(
            event.as_raw_fd(),
            PERF_EVENT_IOC_SET_OUTPUT,
            with.as_raw_fd(),
        )
    })
    .map(drop)
}

/// Stops an event, and its inherited copies.
///
/// # Errors
/// What ioctl(2) says.
pub fn disable(event: BorrowedFd<'_>) -> io::Result<()> {
    const PERF_EVENT_IOC_DISABLE: libc::Ioctl = 0x2401;
    // SAFETY: takes numbers only.
    check(unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_DISABLE, 0) }).map(drop)
}

/// An event, and the memory that the kernel writes its records to and this process reads them from.
pub struct Ring {
    event: OwnedFd,
    /// A page of control data, then the records.
    pages: NonNull<u8>,
    page: usize,
    /// Of the records; a power of two.
    size: usize,
}

/// Where `struct perf_event_mmap_page` has the position that the kernel writes at, and the one that is
/// read at.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

impl Ring {
    /// Maps the ring of an event. The size has to be a power of two, and whole pages.
    ///
    /// # Errors
    /// What mmap(2) says: `EPERM` beyond `kernel.perf_event_mlock_kb` without CAP_IPC_LOCK.
    pub fn map(event: OwnedFd, size: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        if !size.is_power_of_two() || size < page {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = event.as_raw_fd();
        // SAFETY: at an address of the kernel's choice, and unmapped only with `self`.
        let pages = unsafe {
            libc::mmap(
                ptr::null_mut(),
                page + size,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        match NonNull::new(pages.cast()) {
            Some(pages) if pages.as_ptr() != libc::MAP_FAILED.cast() => Ok(Self {
                event,
                pages,
                page,
                size,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Shows what has been written since the last call: one piece and, if it goes on at the begin of
    /// the ring, another. Their room is the kernel's again afterwards.
    pub fn read<T>(&mut self, show: impl FnOnce(&[u8], &[u8]) -> T) -> T {
        // SAFETY: both lie in the first page, aligned to 8 bytes, and live as long as `self`. The kernel
        // too accesses them as whole words.
        let (head, tail) = unsafe {
            let at = |offset| AtomicU64::from_ptr(self.pages.as_ptr().add(offset).cast());
            (at(HEAD), at(TAIL))
        };
        let end = head.load(Ordering::Acquire);
        let begin = tail.load(Ordering::Relaxed);
        let (length, offset) = (
            end.wrapping_sub(begin) as usize,
            begin as usize & (self.size - 1),
        );
        debug_assert!(length <= self.size);
        let first = length.min(self.size - offset);
        // SAFETY: within the mapping; the kernel does not write between tail and head until the tail
        // moves, which is after the last use of these.
        let (first, second) = unsafe {
            let records = self.pages.as_ptr().add(self.page);
            (
                std::slice::from_raw_parts(records.add(offset), first),
                std::slice::from_raw_parts(records, length - first),
            )
        };
        let shown = show(first, second);
        tail.store(end, Ordering::Release);
        shown
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `map` with this length, and there are no references into it.
        let _ = unsafe { libc::munmap(self.pages.as_ptr().cast(), self.page + self.size) };
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl OwnsDescriptor for Ring {}
