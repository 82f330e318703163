//! Edits CRIU's images: the only module that knows their files (`images/*.proto` of CRIU).
//!
//! Whatever an edit does not know it keeps. Field numbers are named as CRIU's definitions name
//! them.

mod deleted;
mod guarded;
mod handoff;
pub(crate) mod image;
mod listeners;
mod memory;
mod pages;
mod process;
mod rewind;
mod shared;
mod timers;
mod uses;
pub(crate) mod whole;
pub(crate) mod wire;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use self::image::{Image, Kind};
pub use self::{
    deleted::{has_deleted, name_deleted},
    guarded::take_back,
    handoff::{Keepalive, SocketTraits, hand_over, handed_name, socket_traits},
    image::EditError,
    listeners::{move_listeners, rename_listeners},
    memory::{Mapped, Traits, describe_mapped, inherited_name, lay_out},
    pages::{Content, Mapping, ProcessPages, pages},
    process::Run,
    rewind::before_listen,
    shared::{NAME as SHARED_NAME, Shared, shared_name},
    uses::{Use, accept_changes, uses},
    whole::{Fault, parse_whole},
};

/// The image with the descriptions of open files.
const FILES: &str = "files.img";
/// The image that tells which of them have been deleted, and are in the image.
const REMAPS: &str = "remap-fpath.img";

mod file_entry {
    pub const TYPE: u32 = 1;
    pub const ID: u32 = 2;
    /// `REG` of `fd_types`.
    pub const TYPE_REG: u64 = 1;
    pub const REG: u32 = 3;
    pub const ISK: u32 = 4;
    pub const TFD: u32 = 12;
    pub const USK: u32 = 16;
    pub const MEMFD: u32 = 20;
}

mod mm_entry {
    pub const EXE_FILE_ID: u32 = 12;
    pub const VMAS: u32 = 14;
}

mod vma_entry {
    pub const START: u32 = 1;
    pub const END: u32 = 2;
    pub const PGOFF: u32 = 3;
    pub const SHMID: u32 = 4;
    pub const PROT: u32 = 5;
    pub const FLAGS: u32 = 6;
    pub const STATUS: u32 = 7;
    pub const MADV: u32 = 9;
    pub const FDFLAGS: u32 = 10;
    /// `VMA_AREA_REGULAR` and so on, of criu/include/image.h.
    pub const REGULAR: u64 = 1;
    pub const VDSO: u64 = 1 << 3;
    pub const HEAP: u64 = 1 << 5;
    pub const FILE_PRIVATE: u64 = 1 << 6;
    pub const FILE_SHARED: u64 = 1 << 7;
    pub const ANON_PRIVATE: u64 = 1 << 9;
    pub const VVAR: u64 = 1 << 12;
    pub const MEMFD: u64 = 1 << 14;
    pub const GUARD: u64 = 1 << 16;
}

mod memfd_file_entry {
    pub const ID: u32 = 1;
    pub const INODE_ID: u32 = 5;
}

mod memfd_inode_entry {
    pub const NAME: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 3;
    pub const SIZE: u32 = 4;
    pub const SHMID: u32 = 5;
    pub const SEALS: u32 = 6;
    pub const INODE_ID: u32 = 7;
    pub const HUGETLB_FLAG: u32 = 8;
    pub const MODE: u32 = 9;
}

mod pagemap_head {
    pub const PAGES_ID: u32 = 1;
}

mod pagemap_entry {
    pub const VADDR: u32 = 1;
    pub const COMPAT_NR_PAGES: u32 = 2;
    pub const FLAGS: u32 = 4;
    pub const NR_PAGES: u32 = 5;
    /// `PE_PRESENT` of criu/include/pagemap.h.
    pub const PRESENT: u64 = 1 << 2;
}

mod reg_file_entry {
    pub const ID: u32 = 1;
    pub const FLAGS: u32 = 2;
    pub const POS: u32 = 3;
    pub const FOWN: u32 = 5;
    pub const NAME: u32 = 6;
    pub const SIZE: u32 = 8;
    pub const MODE: u32 = 10;
    pub const BUILD_ID: u32 = 11;
    /// `checksum`, `checksum_config` and `checksum_parameter`.
    pub const CHECKSUM: [u32; 3] = [12, 13, 14];
}

mod remap_entry {
    /// Of `remap_file_path_entry`.
    pub const ORIG_ID: u32 = 1;
    pub const REMAP_ID: u32 = 2;
    pub const REMAP_TYPE: u32 = 3;
    /// Of `remap_type`: a deleted file that is in the image.
    pub const GHOST: u64 = 1;
}

mod inet_sk_entry {
    pub const FAMILY: u32 = 3;
    pub const PROTO: u32 = 5;
    pub const STATE: u32 = 6;
    pub const SRC_PORT: u32 = 7;
    pub const FLAGS: u32 = 9;
    pub const BACKLOG: u32 = 10;
    pub const SRC_ADDR: u32 = 11;
    pub const DST_ADDR: u32 = 12;
    pub const OPTS: u32 = 14;
    pub const V6ONLY: u32 = 15;
    pub const IFNAME: u32 = 17;
    pub const TCP_OPTS: u32 = 20;
    /// `TCP_CLOSE` and `TCP_LISTEN` of include/net/tcp_states.h; Unix sockets have them too.
    pub const CLOSE: u64 = 7;
    pub const LISTEN: u64 = 10;
}

mod unix_sk_entry {
    pub const INO: u32 = 2;
    pub const STATE: u32 = 4;
    pub const FLAGS: u32 = 5;
    pub const BACKLOG: u32 = 7;
    pub const PEER: u32 = 8;
    pub const NAME: u32 = 11;
    pub const SHUTDOWN: u32 = 12;
    pub const NAME_DIR: u32 = 14;
    /// `SK_SHUTDOWN__BOTH` of images/sk-opts.proto.
    pub const BOTH: u64 = 3;
}

mod sk_opts_entry {
    pub const SO_REUSEPORT: u32 = 17;
    pub const SO_KEEPALIVE: u32 = 19;
}

mod tcp_opts_entry {
    pub const NODELAY: u32 = 2;
    pub const KEEPCNT: u32 = 3;
    pub const KEEPIDLE: u32 = 4;
    pub const KEEPINTVL: u32 = 5;
}

mod fdinfo_entry {
    pub const ID: u32 = 1;
    pub const TYPE: u32 = 3;
}

mod core_entry {
    /// `thread_info` of the x86 family.
    pub const THREAD_INFO: u32 = 2;
    pub const TC: u32 = 3;
    pub const THREAD_CORE: u32 = 5;
}

mod thread_info_x86 {
    pub const GPREGS: u32 = 2;
}

mod user_x86_regs_entry {
    pub const AX: u32 = 11;
    pub const ORIG_AX: u32 = 16;
    pub const IP: u32 = 17;
}

mod task_core_entry {
    pub const TASK_STATE: u32 = 1;
    pub const STOP_SIGNO: u32 = 21;
    /// `COMPEL_TASK_ALIVE` and `COMPEL_TASK_STOPPED` of compel's task-state.h.
    pub const ALIVE: u64 = 1;
    pub const STOPPED: u64 = 3;
}

mod thread_core_entry {
    pub const SECCOMP_MODE: u32 = 11;
    pub const SECCOMP_FILTER: u32 = 12;
    /// Of linux/seccomp.h.
    pub const SECCOMP_MODE_DISABLED: u64 = 0;
}

mod seccomp_entry {
    pub const SECCOMP_FILTERS: u32 = 1;
}

mod seccomp_filter {
    pub const FILTER: u32 = 1;
    pub const PREV: u32 = 2;
}

mod stats_entry {
    pub const RESTORE: u32 = 2;
}

mod restore_stats_entry {
    pub const PAGES_COMPARED: u32 = 1;
    pub const PAGES_SKIPPED_COW: u32 = 2;
    pub const FORKING_TIME: u32 = 3;
    pub const RESTORE_TIME: u32 = 4;
    pub const PAGES_RESTORED: u32 = 5;
}

/// CRIU's own statistics of a dump.
pub const STATISTICS: &str = "stats-dump";

/// Keeps CRIU's statistics of a dump with its images, for those who look at them with other tools.
///
/// # Errors
/// [`EditError::Write`].
pub fn keep_statistics(work: &Path, images: &Path) -> Result<(), EditError> {
    let path = images.join(STATISTICS);
    match fs::copy(work.join(STATISTICS), &path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(EditError::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// The image that CRIU reads before its own clock of a restore starts.
pub const INVENTORY: &str = "inventory.img";

/// Makes fresh images fit for many restores.
///
/// # Errors
/// See [`EditError`].
pub fn make_reusable(images: &Path) -> Result<(), EditError> {
    forget_sizes(images)?;
    timers::set_anew(images)?;
    wake_up(images)
}

/// Restores connected Unix sockets as ones whose other end has been closed.
///
/// # Errors
/// See [`EditError`].
pub fn close_unix(images: &Path, inodes: &[u64]) -> Result<(), EditError> {
    if inodes.is_empty() {
        return Ok(());
    }
    let mut image = Image::read(&images.join(FILES), Kind::Files)?;
    for entry in &mut image.entries {
        entry.edit(file_entry::USK, |socket| {
            let inode = socket.number(unix_sk_entry::INO);
            if inode.is_some_and(|inode| inodes.contains(&inode)) {
                socket.replace_number(unix_sk_entry::PEER, 0);
                let both = wire::Value::Varint(unix_sk_entry::BOTH);
                socket.set(unix_sk_entry::SHUTDOWN, [both]);
            }
        });
    }
    image.write()
}

/// Removes the size and the mode of files that are open for writing: CRIU refuses to restore a
/// process if a file has another size than at the dump, as a log has after its first line, or
/// another mode, as a pipe has that takes the place of a log.
fn forget_sizes(images: &Path) -> Result<(), EditError> {
    let mut image = Image::read(&images.join(FILES), Kind::Files)?;
    for entry in &mut image.entries {
        entry.edit(file_entry::REG, |file| {
            let flags = file.number(reg_file_entry::FLAGS).unwrap_or(0);
            if flags & libc::O_ACCMODE as u64 != libc::O_RDONLY as u64 {
                file.remove(&[reg_file_entry::SIZE, reg_file_entry::MODE]);
                file.remove(&reg_file_entry::CHECKSUM);
            }
            let name = file.bytes(reg_file_entry::NAME).unwrap_or_default();
            if name.starts_with(b"file[") {
                // Left to the caller, who may give a pipe instead, which has no position.
                file.replace_number(reg_file_entry::POS, u64::MAX);
            }
        });
    }
    image.write()
}

/// Restores as running what was stopped for the dump.
fn wake_up(images: &Path) -> Result<(), EditError> {
    for path in cores(images)? {
        let mut image = Image::read(&path, Kind::Core)?;
        for entry in &mut image.entries {
            entry.edit(core_entry::TC, |task| {
                if task.number(task_core_entry::TASK_STATE) == Some(task_core_entry::STOPPED) {
                    task.replace_number(task_core_entry::TASK_STATE, task_core_entry::ALIVE);
                    task.remove(&[task_core_entry::STOP_SIGNO]);
                }
            });
        }
        image.write()?;
    }
    Ok(())
}

fn cores(images: &Path) -> Result<Vec<PathBuf>, EditError> {
    let fail = |source| EditError::Read {
        path: images.into(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(images).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("core-") && name.ends_with(".img") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether the server holds terminals: CRIU has a file for them only then.
pub fn has_terminals(images: &Path) -> bool {
    images.join("tty-info.img").exists()
}

/// The ports that the server shares with others by SO_REUSEPORT.
///
/// # Errors
/// See [`EditError`].
pub fn shared_ports(images: &Path) -> Result<BTreeSet<u16>, EditError> {
    let image = Image::read(&images.join(FILES), Kind::Files)?;
    let port = |entry: &wire::Message| -> Option<u16> {
        let socket = wire::Message::parse(entry.bytes(file_entry::ISK)?)?;
        let options = wire::Message::parse(socket.bytes(inet_sk_entry::OPTS)?)?;
        let shares = options.number(sk_opts_entry::SO_REUSEPORT) == Some(1);
        let address = listeners::tcp_listener(&socket)?;
        shares.then_some(address.port())
    };
    Ok(image.entries.iter().filter_map(port).collect())
}

/// How much memory the images hold, in bytes.
pub fn memory_bytes(images: &Path) -> u64 {
    let files = fs::read_dir(images).into_iter().flatten().flatten();
    let has_pages =
        |file: &fs::DirEntry| file.file_name().as_encoded_bytes().starts_with(b"pages-");
    let size = |file: fs::DirEntry| file.metadata().map_or(0, |metadata| metadata.len());
    files.filter(has_pages).map(size).sum()
}

/// What CRIU counted of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreStatistics {
    /// In microseconds: from when it has read the inventory until the tree is there, to be caught
    /// and resumed.
    pub restore_us: u64,
    /// Of that, the root of the tree forking its children.
    pub forking_us: u64,
    /// Pages that processes have from their parents, and that were compared with the image.
    pub pages_compared: Option<u64>,
    /// Of them, those left shared.
    pub pages_skipped_cow: Option<u64>,
    /// Pages copied.
    pub pages_restored: Option<u64>,
}

/// CRIU's own statistics of a restore, from the work folder.
pub fn restore_statistics(work: &Path) -> Option<RestoreStatistics> {
    use restore_stats_entry as field;
    let counted = statistics(&work.join("stats-restore"), stats_entry::RESTORE)?;
    Some(RestoreStatistics {
        restore_us: counted.number(field::RESTORE_TIME)?,
        forking_us: counted.number(field::FORKING_TIME)?,
        pages_compared: counted.number(field::PAGES_COMPARED),
        pages_skipped_cow: counted.number(field::PAGES_SKIPPED_COW),
        pages_restored: counted.number(field::PAGES_RESTORED),
    })
}

fn statistics(path: &Path, part: u32) -> Option<wire::Message> {
    let image = Image::read(path, Kind::Stats).ok()?;
    wire::Message::parse(image.entries.first()?.bytes(part)?)
}
