//! Guards memory that is mapped from an image, so that it behaves as the anonymous memory that the
//! server took it for.
//!
//! A private mapping of a file is anonymous memory in all but a few system calls: thrown away by
//! `MADV_DONTNEED`, its pages are those of the file again and not zeros, `MADV_FREE` fails, and what
//! mremap(2) adds is what follows in the file. So a seccomp filter (see [`filter`]) stops these calls
//! where they concern mapped memory, before they do anything; the guard, which is init, has the
//! thread put anonymous memory in place of the mapping, and then begin its call anew.
//!
//! Until the guard has received it, a call can be interrupted; see [`interrupted`].
//!
//! Invariants: mapped memory never leaves the ranges of the filter, as what mremap(2) would move is
//! made anonymous before. Each range is replaced once. If the guard cannot do its work, its instance
//! ends.

pub mod filter;
mod interrupted;
pub(crate) mod mappings;
mod replace;
mod tracee;

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use self::{
    mappings::{FileId, Mapping, Mappings},
    replace::{Piece, Replacement},
    tracee::TraceError,
};
use crate::{
    edit::Traits,
    host,
    sys::{
        self,
        seccomp::{self, Answer, Notification},
    },
    watch::interruptions::Interruptions,
};

/// The first Linux in which a signal does not interrupt a call that was received.
const OLDEST: (u32, u32) = (5, 19);

/// Why memory cannot be guarded here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("mapped memory is guarded on x86-64 only")]
    Architecture,
    #[error("the kernel has no seccomp filters that notify (CONFIG_SECCOMP_FILTER, Linux 5.19)")]
    Kernel,
    #[error("warmimg itself runs under a seccomp filter that notifies, and there can be only one")]
    Nested,
}

/// Why an instance can no longer be guarded.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("cannot receive a notification of the seccomp filter")]
    Receive(#[source] io::Error),
    #[error("cannot answer a notification of the seccomp filter")]
    Answer(#[source] io::Error),
    #[error("cannot read the mappings of process {pid}")]
    Mappings { pid: i32, source: io::Error },
    #[error("cannot copy memory of process {pid}")]
    Memory { pid: i32, source: io::Error },
    #[error(
        "a signal interrupted thread {tid} in a call on memory, which cannot be carried out any more"
    )]
    Interrupted { tid: i32 },
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What a guard has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// System calls that were stopped and looked at.
    pub calls: u64,
    /// Ranges that were replaced by fresh memory, as their content was thrown away.
    pub fresh: u64,
    pub fresh_bytes: u64,
    /// Ranges that were replaced by a copy.
    pub copied: u64,
    pub copied_bytes: u64,
    /// Calls on mapped memory that had to fail, as another process traces the thread.
    pub refused: u64,
    /// Calls that a signal interrupted before they were received, and that were carried out then.
    #[serde(default)]
    pub interrupted: u64,
}

/// Memory to be guarded.
#[derive(Clone, Debug, Default)]
pub struct Guarded {
    /// The files that it is mapped from.
    pub files: Vec<PathBuf>,
    /// All mapped memory lies in these: the first address, and that behind the last.
    pub ranges: Vec<(u64, u64)>,
    /// What is special about some of it.
    pub traits: Vec<Traits>,
}

impl Counters {
    /// Writes them to a file, over those that it has.
    ///
    /// # Errors
    /// What pwrite(2) says.
    pub fn write(&self, file: &fs::File) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        // They only grow, and with them the text.
        file.write_all_at(&serde_json::to_vec(self)?, 0)
    }
}

/// Whether memory can be guarded here.
///
/// # Errors
/// See [`Unsupported`].
pub fn supported() -> Result<(), Unsupported> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Unsupported::Architecture);
    }
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    let can_notify = actions.is_ok_and(|text| text.split(' ').any(|word| word == "user_notif"));
    if !can_notify || host::kernel_version() < OLDEST {
        return Err(Unsupported::Kernel);
    }
    match seccomp::is_filtered() && is_nested() {
        true => Err(Unsupported::Nested),
        false => Ok(()),
    }
}

/// Whether a filter that notifies is refused, as there is one already. A child tries it.
fn is_nested() -> bool {
    match sys::fork(sys::ForkOptions::default()) {
        Ok(sys::Fork::Child) => {
            let listener = seccomp::listen(&filter::program(&Guarded::default()));
            let is_nested = listener.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY));
            sys::exit_now(is_nested.into())
        }
        Ok(sys::Fork::Parent { pid, .. }) => {
            let pid = nix::unistd::Pid::from_raw(pid);
            let status = nix::sys::wait::waitpid(pid, None);
            status == Ok(nix::sys::wait::WaitStatus::Exited(pid, 1))
        }
        Err(_) => false,
    }
}

const MSEAL: libc::c_long = filter::MSEAL as libc::c_long;

/// The guard of an instance.
pub struct Guard {
    listener: OwnedFd,
    interruptions: Interruptions,
    files: Vec<FileId>,
    traits: Vec<Traits>,
    /// How often the mappings of a process were cut.
    cuts: HashMap<i32, u32>,
    counters: Counters,
}

/// What the guard does about a call.
enum Deed {
    /// Nothing: it is carried out.
    Let,
    /// It is carried out after this.
    Replace(Replacement),
    /// It fails as it would on anonymous memory.
    Fail(i32),
}

impl Guard {
    /// A guard that gets its notifications by `listener`, of memory mapped from these files.
    ///
    /// # Errors
    /// What mmap(2) says, or what reading its own mappings says.
    pub fn new(
        listener: OwnedFd,
        interruptions: Interruptions,
        files: &[BorrowedFd<'_>],
        traits: Vec<Traits>,
    ) -> io::Result<Self> {
        let identify = |file: &BorrowedFd<'_>| {
            let page = sys::Page::map(*file)?;
            let own = Mappings::of(std::process::id() as i32)?.at_or_behind(page.address())?;
            Ok(own.ok_or(io::ErrorKind::NotFound)?.file)
        };
        let files: io::Result<Vec<FileId>> = files.iter().map(identify).collect();
        Ok(Self {
            listener,
            interruptions,
            files: files?,
            traits,
            cuts: HashMap::new(),
            counters: Counters::default(),
        })
    }

    /// Becomes readable with a notification.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Becomes readable with an interruption.
    pub fn interruptions(&self) -> BorrowedFd<'_> {
        self.interruptions.descriptor()
    }

    /// Carries out all calls that were interrupted.
    ///
    /// # Errors
    /// See [`GuardError`]: the instance must not go on then.
    pub fn serve_interruptions(&mut self) -> Result<(), GuardError> {
        while let Some(interruption) = self.interruptions.take() {
            self.counters.interrupted += 1;
            match self.complete(&interruption) {
                // It was killed meanwhile.
                Err(GuardError::Trace(TraceError::Gone(_))) => {}
                Err(GuardError::Memory { source, .. } | GuardError::Mappings { source, .. })
                    if is_gone(&source) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Serves the notification that has come.
    ///
    /// # Errors
    /// See [`GuardError`]: the instance must not go on then.
    pub fn serve(&mut self) -> Result<(), GuardError> {
        let notification = match seccomp::receive(self.listener.as_fd()) {
            Ok(notification) => notification,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(GuardError::Receive(error)),
        };
        self.counters.calls += 1;
        match self.look_at(&notification) {
            // It was killed meanwhile.
            Err(GuardError::Trace(TraceError::Gone(_))) => Ok(()),
            Err(GuardError::Mappings { source, .. }) if is_gone(&source) => Ok(()),
            outcome => outcome,
        }
    }

    fn look_at(&mut self, notification: &Notification) -> Result<(), GuardError> {
        let tid = notification.pid as i32;
        let deed = self
            .deed(notification)
            .map_err(|source| GuardError::Mappings { pid: tid, source })?;
        match deed {
            Deed::Let => self.answer(notification, Answer::Continue),
            Deed::Fail(errno) => self.answer(notification, Answer::Return(errno)),
            Deed::Replace(replacement) => self.replace(notification, &replacement),
        }
    }

    fn replace(
        &mut self,
        notification: &Notification,
        replacement: &Replacement,
    ) -> Result<(), GuardError> {
        /// The kernel's `ERESTARTNOINTR`: the call begins anew, whatever signals there are.
        const RESTART: i32 = 513;
        let tid = notification.pid as i32;
        let seized = match tracee::Seized::new(tid) {
            Err(TraceError::Traced(_)) => {
                let is_done = replacement.carry_out_from_outside(tid)?;
                self.counters.refused += u64::from(!is_done);
                // Else it fails as if there were no memory.
                let errno = if is_done { 0 } else { libc::ENOMEM };
                return self.answer(notification, Answer::Return(errno));
            }
            seized => seized?,
        };
        // It stops before it is back in user mode, and before any signal is delivered.
        self.answer(notification, Answer::Return(RESTART))?;
        let thread = seized.stopped()?;
        let behind = notification.data.instruction_pointer;
        replacement.carry_out(thread, behind, &mut self.counters)
    }

    fn answer(&self, notification: &Notification, answer: Answer) -> Result<(), GuardError> {
        match seccomp::answer(self.listener.as_fd(), notification.id, answer) {
            Err(error) if !is_gone(&error) => Err(GuardError::Answer(error)),
            _ => Ok(()),
        }
    }

    fn is_mapped(&self, mapping: &Mapping) -> bool {
        !mapping.is_shared && self.files.contains(&mapping.file)
    }

    /// What to do about a call.
    fn deed(&mut self, notification: &Notification) -> io::Result<Deed> {
        let tid = notification.pid as i32;
        let data = &notification.data;
        let mut mappings = Mappings::of(tid)?;
        if data.arch != filter::NATIVE {
            let arguments = data.args.map(|argument| argument & u64::from(u32::MAX));
            let found = mappings.within(range(arguments[0], arguments[1]))?;
            // A thread cannot be made to execute calls of ours by the instruction of another
            // architecture.
            return Ok(match found.iter().any(|m| self.is_mapped(m)) {
                true => Deed::Fail(libc::ENOMEM),
                false => Deed::Let,
            });
        }
        match libc::c_long::from(data.nr) & !libc::c_long::from(filter::X32) {
            libc::SYS_madvise => {
                let range = range(data.args[0], data.args[1]);
                self.advice(&mut mappings, &[range], data.args[2] as i32)
            }
            libc::SYS_process_madvise => {
                let advice = data.args[3] as i32;
                if !is_own(tid, data.args[0] as i32) || !filter::differs(advice) {
                    return Ok(Deed::Let);
                }
                let ranges = ranges(tid, data.args[1], data.args[2])?;
                self.advice(&mut mappings, &ranges, advice)
            }
            libc::SYS_mremap => self.remap(&mut mappings, data.args),
            libc::SYS_mlock | libc::SYS_mlock2 | MSEAL => {
                self.keep(&mut mappings, &[range(data.args[0], data.args[1])], None)
            }
            libc::SYS_mlockall => self.keep(&mut mappings, &[(0, u64::MAX)], None),
            // The kernel lets the faults of few kinds of mappings be served.
            libc::SYS_ioctl => {
                let ranges = ranges(tid, data.args[2], 1)?;
                self.keep(&mut mappings, &ranges, None)
            }
            _ => Ok(Deed::Let),
        }
    }

    fn advice(
        &mut self,
        mappings: &mut Mappings,
        ranges: &[(u64, u64)],
        advice: i32,
    ) -> io::Result<Deed> {
        if advice == libc::MADV_REMOVE {
            return self.remove(mappings, ranges);
        }
        if !filter::DISCARDS.contains(&advice) {
            return self.keep(mappings, ranges, Some(advice));
        }
        let mut fresh = Vec::new();
        let mut cut = Vec::new();
        for &range in ranges {
            let found = mappings.within(range)?;
            if !found.iter().any(|mapping| self.is_mapped(mapping)) {
                continue;
            }
            // The kernel goes no further than to what is locked, but with one kind of advice.
            let limit = match found.len() {
                1 => None,
                _ if advice == libc::MADV_DONTNEED_LOCKED => None,
                _ => mappings.first_locked(range)?,
            };
            let reached = |mapping: &&Mapping| limit.is_none_or(|limit| mapping.start < limit);
            for mapping in found.iter().take_while(reached) {
                if self.is_mapped(mapping) {
                    let piece = self.piece(mapping, range);
                    if piece.cuts(mapping) {
                        cut.push(self.piece(mapping, (mapping.start, mapping.end)));
                    }
                    fresh.push(piece);
                }
            }
        }
        if !cut.is_empty() && self.is_cut_too_often(mappings.pid()) {
            return Ok(Deed::Replace(Replacement::each(cut)));
        }
        Ok(match fresh.is_empty() {
            true => Deed::Let,
            false => Deed::Replace(Replacement::Fresh(fresh)),
        })
    }

    /// Of anonymous memory, nothing can be removed. Of a file, it is another error.
    fn remove(&self, mappings: &mut Mappings, ranges: &[(u64, u64)]) -> io::Result<Deed> {
        for &range in ranges {
            if range.0 < range.1
                && let Some(first) = mappings.at_or_behind(range.0)?
                && first.start < range.1
                && self.is_mapped(&first)
            {
                return Ok(Deed::Fail(libc::EINVAL));
            }
        }
        Ok(Deed::Let)
    }

    /// What is mapped in some ranges becomes anonymous with its content, unless it has been told this
    /// already. CRIU tells it so itself when it restores it.
    fn keep(
        &self,
        mappings: &mut Mappings,
        ranges: &[(u64, u64)],
        advice: Option<i32>,
    ) -> io::Result<Deed> {
        let mut pieces = Vec::new();
        for &range in ranges {
            let found = mappings.within(range)?;
            let mapped = found.iter().filter(|mapping| self.is_mapped(mapping));
            let mapped = mapped.map(|mapping| self.piece(mapping, range));
            let is_new = |piece: &Piece| !advice.is_some_and(|advice| piece.was_told(advice));
            pieces.extend(mapped.filter(is_new));
        }
        Ok(match pieces.is_empty() {
            true => Deed::Let,
            false => Deed::Replace(Replacement::each(pieces)),
        })
    }

    fn remap(&self, mappings: &mut Mappings, arguments: [u64; 6]) -> io::Result<Deed> {
        let [old, old_len, new_len, flags, ..] = arguments;
        let moves = (libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) as u64;
        let range = range(old, old_len);
        if range.0 == range.1 || (new_len <= old_len && flags & moves == 0) {
            // What it does not need is unmapped, nothing else.
            return Ok(Deed::Let);
        }
        let found = mappings.within(range)?;
        let own = |mapping: &Mapping| {
            !mapping.is_shared && (mapping.is_anonymous() || self.is_mapped(mapping))
        };
        let is_whole = found.first().is_some_and(|first| first.start <= range.0)
            && found.last().is_some_and(|last| last.end >= range.1)
            && found.windows(2).all(|pair| {
                pair[0].end == pair[1].start && pair[0].protection == pair[1].protection
            });
        let is_one_anonymous = matches!(&found[..], [one] if one.is_anonymous());
        if !is_whole || is_one_anonymous || !found.iter().all(own) {
            // The kernel refuses what is not whole.
            return Ok(Deed::Let);
        }
        let pieces = found.iter().map(|mapping| self.piece(mapping, range));
        Ok(Deed::Replace(Replacement::Copies(vec![pieces.collect()])))
    }

    fn piece(&self, mapping: &Mapping, range: (u64, u64)) -> Piece {
        // At the end of its restore, CRIU advises on what is still one mapping with its neighbour.
        let start = mapping.start.max(range.0);
        let holds = |traits: &&Traits| traits.start <= start && start < traits.end;
        Piece::of(mapping, range, self.traits.iter().find(holds))
    }

    /// Counts a cut in the mappings of a process. Each makes mappings more, and their number is
    /// limited.
    fn is_cut_too_often(&mut self, tid: i32) -> bool {
        const MOST: u32 = 64;
        /// More processes than that are not told apart for ever.
        const MOST_PROCESSES: usize = 4096;
        let process = process_of(tid).unwrap_or(tid);
        if self.cuts.len() > MOST_PROCESSES {
            self.cuts.clear();
        }
        let cuts = self.cuts.entry(process).or_default();
        *cuts += 1;
        *cuts > MOST
    }
}

/// The addresses of a call, in whole pages; none if the kernel refuses them.
fn range(start: u64, len: u64) -> (u64, u64) {
    let end = len.checked_next_multiple_of(page_size());
    let end = end.and_then(|len| start.checked_add(len));
    match start % page_size() {
        0 => (start, end.unwrap_or(start)),
        _ => (start, start),
    }
}

fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Whether the process or thread is gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether a descriptor for process_madvise(2) is of the calling process itself.
fn is_own(tid: i32, pidfd: i32) -> bool {
    /// `PIDFD_SELF_THREAD` and `PIDFD_SELF_THREAD_GROUP` of linux/pidfd.h.
    const SELF: [i32; 2] = [-10_000, -10_001];
    let named = || field(&format!("/proc/{tid}/fdinfo/{pidfd}"), "Pid:");
    SELF.contains(&pidfd) || named().is_some_and(|named| Some(named) == process_of(tid))
}

/// The process that a thread belongs to.
fn process_of(tid: i32) -> Option<i32> {
    field(&format!("/proc/{tid}/status"), "Tgid:")
}

fn field(path: &str, name: &str) -> Option<i32> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// The ranges of process_madvise(2), an array of `struct iovec`, or of `struct uffdio_range`, which
/// is the same.
fn ranges(tid: i32, array: u64, count: u64) -> io::Result<Vec<(u64, u64)>> {
    use std::os::unix::fs::FileExt as _;
    const SIZE: usize = size_of::<libc::iovec>();
    let count = count.min(libc::UIO_MAXIOV as u64) as usize;
    let mut bytes = vec![0; count * SIZE];
    let memory = fs::File::open(format!("/proc/{tid}/mem"))?;
    if memory.read_exact_at(&mut bytes, array).is_err() {
        // The kernel finds so, too.
        return Ok(vec![]);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    let (ranges, _) = bytes.as_chunks::<SIZE>();
    let range = |iovec: &[u8; SIZE]| range(number(&iovec[..SIZE / 2]), number(&iovec[SIZE / 2..]));
    Ok(ranges.iter().map(range).collect())
}
