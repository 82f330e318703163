//! The files and folders that the followed processes open: each is told once as read, and once as written
//! to.

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::{Array, LruHashMap, RingBuf},
    programs::BtfTracePointContext,
};
use probe_ebpf::{AT_FDCWD, OPENED_CUT, OPENED_FOLDER, OPENED_TO_WRITE, Opened, trace::FileKey};

use crate::{
    kernel::{
        Identity, Registers, current_tgid, file_of, identity_of, read_user, read_user_text,
        working_folder,
    },
    programs::in_tree,
};

/// What was opened; user space takes it at the latest when the tree is frozen.
#[map]
static OPENS: RingBuf = RingBuf::with_byte_size(1 << 21, 0);

/// How each file was opened: bits of `READ` and `WRITTEN`.
#[map]
static KNOWN: LruHashMap<FileKey, u32> = LruHashMap::with_max_entries(1 << 14, 0);

/// Files that found no room.
#[map]
static UNTOLD: Array<u64> = Array::with_max_entries(1, 0);

const READ: u32 = 1;
const WRITTEN: u32 = 2;

/// An open that is over: its path in user memory, and how.
struct Open {
    folder: i32,
    path: u64,
    flags: u64,
}

/// Every system call of the machine passes here at its end; those of no interest leave at once.
#[btf_tracepoint(function = "sys_exit")]
pub fn file_opened(ctx: BtfTracePointContext) -> i32 {
    let registers: *const u8 = ctx.arg(0);
    let registers = Registers(registers as u64);
    let number = registers.number();
    if !is_open(number) {
        return 0;
    }
    let result: i64 = ctx.arg(1);
    if result >= 0 && in_tree(current_tgid()) {
        opened(number, registers, result as i32);
    }
    0
}

/// By the number in arch/x86/entry/syscalls/syscall_64.tbl: open, creat, openat, openat2.
#[cfg(bpf_target_arch = "x86_64")]
fn is_open(number: i64) -> bool {
    matches!(number, 2 | 85 | 257 | 437)
}

/// By the number in include/uapi/asm-generic/unistd.h: openat, openat2.
#[cfg(bpf_target_arch = "aarch64")]
fn is_open(number: i64) -> bool {
    matches!(number, 56 | 437)
}

fn open_of(number: i64, registers: Registers) -> Option<Open> {
    /// Of open(2).
    const CREAT_FLAGS: u64 = 0o1101;
    const OPENAT2: i64 = 437;
    #[cfg(bpf_target_arch = "x86_64")]
    if let 2 | 85 = number {
        return Some(Open {
            folder: AT_FDCWD,
            path: registers.argument(0),
            flags: match number {
                2 => registers.argument(1),
                _ => CREAT_FLAGS,
            },
        });
    }
    let last = registers.argument(2);
    Some(Open {
        folder: registers.first_argument_at_exit() as i32,
        path: registers.argument(1),
        flags: match number {
            // The first member of `struct open_how`.
            OPENAT2 => read_user(last)?,
            _ => last,
        },
    })
}

fn opened(number: i64, registers: Registers, fd: i32) -> Option<()> {
    const S_IFMT: u16 = 0o170_000;
    const S_IFREG: u16 = 0o100_000;
    const S_IFDIR: u16 = 0o040_000;
    const O_ACCMODE: u64 = 3;
    /// Only a reference to the file.
    const O_PATH: u64 = 0o10_000_000;
    let file = identity_of(file_of(fd)?)?;
    let open = open_of(number, registers)?;
    let (how, flags) = match file.mode & S_IFMT {
        // Others may be opened by their names in it.
        S_IFDIR => (READ, OPENED_FOLDER),
        S_IFREG if open.flags & O_PATH != 0 => return None,
        S_IFREG if open.flags & O_ACCMODE != 0 => (WRITTEN, OPENED_TO_WRITE),
        S_IFREG => (READ, 0),
        _ => return None,
    };
    if is_news(file, how) {
        tell(file, &open, flags);
    }
    Some(())
}

/// Takes note of how a file was opened; returns whether it is the first time so.
fn is_news(file: Identity, how: u32) -> bool {
    let key = FileKey {
        inode: file.inode,
        device: file.device,
        reserved: 0,
    };
    let Some(known) = KNOWN.get_ptr_mut(key) else {
        // Told once more if there is no room.
        let _ = KNOWN.insert(key, how, 0);
        return true;
    };
    // SAFETY: points into the map, whose values are plain numbers.
    let known = unsafe { &mut *known };
    let is_news = *known & how == 0;
    *known |= how;
    is_news
}

fn tell(file: Identity, open: &Open, flags: u32) {
    let Some(mut entry) = OPENS.reserve::<Opened>(0) else {
        if let Some(count) = UNTOLD.get_ptr_mut(0) {
            // SAFETY: points into the map; a lost increment on a race still leaves it above zero.
            unsafe { *count += 1 };
        }
        return;
    };
    let folder = match open.folder {
        AT_FDCWD => working_folder(),
        fd => file_of(fd).and_then(identity_of),
    };
    // SAFETY: the reserved bytes are ours until submitted, and every field is written; of the path, as much
    // as its length says.
    let opened = unsafe {
        let opened = entry.as_mut_ptr();
        (*opened).inode = file.inode;
        (*opened).device = file.device;
        (*opened).tgid = current_tgid();
        (*opened).folder = open.folder;
        (*opened).folder_device = folder.map_or(0, |folder| folder.device);
        (*opened).folder_inode = folder.map_or(0, |folder| folder.inode);
        (*opened).flags = flags;
        &mut *opened
    };
    let (len, is_cut) = read_user_text(open.path, 0, &mut opened.path);
    opened.path_len = len as u32;
    if is_cut {
        opened.flags |= OPENED_CUT;
    }
    entry.submit(wake_up_for(&OPENS, 1 << 16));
}

/// How something is handed over: user space is woken each time that so many bytes, a power of two, have been
/// written, as a wake-up is an interrupt, which takes longer than the call that was told of, and as what it
/// does then takes a processor from the server. More than once at times, as others write too.
pub fn wake_up_for(ring: &RingBuf, every: u64) -> u64 {
    const NO_WAKEUP: u64 = 1;
    const FORCE_WAKEUP: u64 = 2;
    /// `BPF_RB_PROD_POS`
    const WRITTEN: u64 = 3;
    /// What is told of is never longer.
    const LONGEST: u64 = 1 << 10;
    if ring.query(WRITTEN) & (every - 1) < LONGEST {
        FORCE_WAKEUP
    } else {
        NO_WAKEUP
    }
}
