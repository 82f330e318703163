//! Reads the kernel's own structures by the offsets that user space found in its BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_kernel, bpf_probe_read_kernel_buf,
    bpf_probe_read_user, bpf_probe_read_user_buf,
    generated::{self, bpf_get_current_task_btf},
};
use probe_ebpf::{Event, FLAG_TRUNCATED, KernelOffsets, TEXT_LEN, Wanted};

#[unsafe(no_mangle)]
static OFFSETS: KernelOffsets = KernelOffsets {
    task_tgid: 0,
    task_files: 0,
    task_signal: 0,
    task_exit_code: 0,
    signal_live: 0,
    files_fdt: 0,
    fdtable_fd: 0,
    fdtable_max_fds: 0,
    file_private_data: 0,
    file_inode: 0,
    inode_mode: 0,
    socket_sk: 0,
    sock_family: 0,
    sock_state: 0,
    sock_num: 0,
    sock_rcv_saddr: 0,
    sock_v6_rcv_saddr: 0,
    unix_sock_addr: 0,
    unix_address_len: 0,
    unix_address_name: 0,
    binprm_filename: 0,
    task_pid: 0,
    inode_ino: 0,
    inode_sb: 0,
    sb_dev: 0,
    task_fs: 0,
    fs_pwd_dentry: 0,
    dentry_inode: 0,
    folio_flags: 0,
    folio_flags_1: 0,
    folio_mapping: 0,
    mapping_host: 0,
    task_pagefault_disabled: 0,
    sock_dport: 0,
};

#[unsafe(no_mangle)]
static WANTED: Wanted = Wanted {
    family: 0,
    port: 0,
    text_len: 0,
    text: [0; TEXT_LEN],
};

/// An offset as user space set it; volatile, or the compiler would use the zeros above. One by one, as
/// all of them would be read each time.
macro_rules! offset {
    ($member:ident) => {
        // SAFETY: a valid, initialised static.
        unsafe { core::ptr::read_volatile(&raw const OFFSETS.$member) }
    };
}

/// Reads a `T` at `base + offset` of kernel memory; `None` if that is not mapped.
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// As [`read`], of a structure that the kernel itself handed to the program: the verifier
/// knows its type, so that this is one instruction and no call of a helper.
fn read_known<T>(base: u64, offset: u32) -> T {
    // SAFETY: the verifier refuses an offset outside of the structure; the kernel reads zeros where nothing
    // is mapped.
    unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const T) }
}

/// `AF_UNIX`, `AF_INET` and `AF_INET6` of socket(2).
pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// Socket states of `include/net/tcp_states.h`, which Unix sockets share.
pub const STATE_CLOSE: u8 = 7;
pub const STATE_LISTEN: u8 = 10;

pub fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

pub fn current_tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// The process of a task that is an argument of the program.
pub fn tgid_of(task: u64) -> u32 {
    read_known(task, offset!(task_tgid))
}

/// The thread that a task is, which is an argument of the program.
pub fn tid_of(task: u64) -> u32 {
    read_known(task, offset!(task_pid))
}

/// Whether the current task may take no page fault for now: one that it runs into is no fault of its
/// program, and nothing tells of its end.
pub fn takes_no_faults() -> bool {
    // SAFETY: takes no arguments and returns the current task.
    let task = unsafe { bpf_get_current_task_btf() };
    read_known::<i32>(task as u64, offset!(task_pagefault_disabled)) != 0
}

/// Which file it is, of which type.
#[derive(Clone, Copy)]
pub struct Identity {
    pub inode: u64,
    pub device: u32,
    pub mode: u16,
}

fn identity_of_inode(inode: u64) -> Option<Identity> {
    let superblock: u64 = read(inode, offset!(inode_sb))?;
    Some(Identity {
        inode: read(inode, offset!(inode_ino))?,
        device: read(superblock, offset!(sb_dev))?,
        mode: read(inode, offset!(inode_mode))?,
    })
}

pub fn identity_of(file: u64) -> Option<Identity> {
    identity_of_inode(read(file, offset!(file_inode))?)
}

/// The working directory of the current task.
pub fn working_folder() -> Option<Identity> {
    // SAFETY: takes no arguments and returns the current task.
    let task = unsafe { bpf_get_current_task_btf() };
    let fs: u64 = read_known(task as u64, offset!(task_fs));
    let dentry: u64 = read(fs, offset!(fs_pwd_dentry))?;
    identity_of_inode(read(dentry, offset!(dentry_inode))?)
}

/// The file of a `struct address_space`.
pub fn file_of_mapping(mapping: u64) -> Option<Identity> {
    identity_of_inode(read(mapping, offset!(mapping_host))?)
}

/// The file that a `struct folio` is of, and how many pages it has.
pub fn missed_pages(folio: u64) -> Option<(Identity, u64)> {
    let mapping: u64 = read(folio, offset!(folio_mapping))?;
    let identity = file_of_mapping(mapping)?;
    let flags: u64 = read(folio, offset!(folio_flags))?;
    // `PG_head` of include/linux/page-flags.h; the order is in the low byte of the second page's flags.
    const HEAD: u64 = 1 << 6;
    let order = match flags & HEAD {
        0 => 0,
        _ => read::<u64>(folio, offset!(folio_flags_1))? & 0x1f,
    };
    Some((identity, 1 << order))
}

/// The wait status of `task` if it was the last thread of its process.
pub fn exit_status_if_last(task: u64) -> Option<u32> {
    let signal: u64 = read(task, offset!(task_signal))?;
    let live: i32 = read(signal, offset!(signal_live))?;
    if live > 0 {
        return None;
    }
    read(task, offset!(task_exit_code))
}

/// The `struct file *` behind a descriptor of the current task.
pub fn file_of(fd: i32) -> Option<u64> {
    if fd < 0 {
        return None;
    }
    // SAFETY: takes no arguments and returns the current task.
    let task = unsafe { bpf_get_current_task_btf() };
    let files: u64 = read_known(task as u64, offset!(task_files));
    let table: u64 = read(files, offset!(files_fdt))?;
    let max: u32 = read(table, offset!(fdtable_max_fds))?;
    if fd as u32 >= max {
        return None;
    }
    let array: u64 = read(table, offset!(fdtable_fd))?;
    let file: u64 = read(array + (fd as u64) * 8, 0)?;
    if file == 0 { None } else { Some(file) }
}

pub fn private_data(file: u64) -> Option<u64> {
    read(file, offset!(file_private_data))
}

/// The `struct sock *` of a file that is a socket.
pub fn sock_of(file: u64) -> Option<u64> {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    let inode: u64 = read(file, offset!(file_inode))?;
    let mode: u16 = read(inode, offset!(inode_mode))?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket: u64 = read(file, offset!(file_private_data))?;
    let sock: u64 = read(socket, offset!(socket_sk))?;
    if sock == 0 { None } else { Some(sock) }
}

pub fn state_of(sock: u64) -> u8 {
    read(sock, offset!(sock_state)).unwrap_or(0)
}

pub fn is_listening(sock: u64) -> bool {
    sock != 0 && state_of(sock) == STATE_LISTEN
}

pub fn family_of(sock: u64) -> u16 {
    read(sock, offset!(sock_family)).unwrap_or(0)
}

/// The port that an Internet socket is connected to, 0 if it is not.
pub fn peer_port_of(sock: u64) -> u16 {
    u16::from_be(read(sock, offset!(sock_dport)).unwrap_or(0))
}

/// Whether a socket is the listener that counts.
#[inline(never)]
pub fn is_wanted(sock: u64) -> bool {
    let wanted = &raw const WANTED;
    // SAFETY: a valid, initialised static that user space sets before loading; volatile, or the
    // compiler would use the zeros above.
    let (family, port, len) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*wanted).family),
            core::ptr::read_volatile(&raw const (*wanted).port),
            core::ptr::read_volatile(&raw const (*wanted).text_len),
        )
    };
    if family == 0 && port == 0 {
        return true;
    }
    let found = family_of(sock);
    if family == AF_UNIX || found == AF_UNIX {
        return family == found && has_wanted_path(sock, len);
    }
    if read::<u16>(sock, offset!(sock_num)) != Some(port) {
        return false;
    }
    if family == 0 {
        return true;
    }
    if family != found {
        return false;
    }
    let (offset, len) = match family {
        AF_INET => (offset!(sock_rcv_saddr), 4),
        _ => (offset!(sock_v6_rcv_saddr), 16),
    };
    (0..len).all(|i| read(sock, offset + i) == Some(wanted_byte(i)))
}

fn wanted_byte(index: u32) -> u8 {
    // SAFETY: as above; callers stay below `TEXT_LEN`.
    unsafe { core::ptr::read_volatile((&raw const WANTED.text).cast::<u8>().add(index as usize)) }
}

fn has_wanted_path(sock: u64, wanted_len: u32) -> bool {
    const FAMILY_LEN: u32 = 2;
    let Some(address) = read::<u64>(sock, offset!(unix_sock_addr)) else {
        return false;
    };
    let len = read::<u32>(address, offset!(unix_address_len)).unwrap_or(0);
    // That of a path counts its final NUL; an abstract name, which begins with one, ends without.
    let is_path = wanted_byte(0) != 0;
    let is_same_length =
        len == wanted_len + FAMILY_LEN || (is_path && len == wanted_len + FAMILY_LEN + 1);
    if address == 0 || !is_same_length {
        return false;
    }
    for i in 0..TEXT_LEN as u32 {
        if i >= wanted_len {
            return true;
        }
        if read(address, offset!(unix_address_name) + FAMILY_LEN + i) != Some(wanted_byte(i)) {
            return false;
        }
    }
    true
}

/// Writes the local address of `sock` into `event`.
pub fn describe_sock(sock: u64, event: &mut Event) {
    event.family = family_of(sock);
    match event.family {
        AF_INET => {
            event.port = read(sock, offset!(sock_num)).unwrap_or(0);
            let address: [u8; 4] = read(sock, offset!(sock_rcv_saddr)).unwrap_or_default();
            event.text[..4].copy_from_slice(&address);
            event.text_len = 4;
        }
        AF_INET6 => {
            event.port = read(sock, offset!(sock_num)).unwrap_or(0);
            let address: [u8; 16] = read(sock, offset!(sock_v6_rcv_saddr)).unwrap_or_default();
            event.text[..16].copy_from_slice(&address);
            event.text_len = 16;
        }
        AF_UNIX => {
            // The name is a `sockaddr_un`: two bytes of family, then the path.
            const FAMILY_LEN: u32 = 2;
            let address: u64 = read(sock, offset!(unix_sock_addr)).unwrap_or(0);
            if address == 0 {
                return;
            }
            let len: u32 = read(address, offset!(unix_address_len)).unwrap_or(0);
            let len = len.saturating_sub(FAMILY_LEN);
            let path = address + u64::from(offset!(unix_address_name) + FAMILY_LEN);
            // SAFETY: the helper checks the address and fails instead of faulting.
            if unsafe { bpf_probe_read_kernel_buf(path as *const u8, &mut event.text) }.is_ok() {
                event.text_len = len.min(TEXT_LEN as u32);
            }
        }
        _ => {}
    }
}

/// Writes the path of what `bprm` executes into `event`.
pub fn describe_exec(bprm: u64, event: &mut Event) {
    let Some(name) = read::<u64>(bprm, offset!(binprm_filename)) else {
        return;
    };
    // SAFETY: the buffer is valid for its length and the helper checks the address it reads.
    let copied = unsafe {
        aya_ebpf::helpers::generated::bpf_probe_read_kernel_str(
            event.text.as_mut_ptr().cast(),
            TEXT_LEN as u32,
            name as *const core::ffi::c_void,
        )
    };
    if copied > 0 {
        // The count includes the final NUL.
        event.text_len = (copied as u32 - 1).min(TEXT_LEN as u32);
        if copied as usize == TEXT_LEN {
            event.flags |= FLAG_TRUNCATED;
        }
    }
}

/// Whether a Unix socket has a name, without which it cannot listen.
pub fn is_bound_unix(sock: u64) -> bool {
    read::<u64>(sock, offset!(unix_sock_addr)).unwrap_or(0) != 0
}

/// Reads a `T` of the current process; `None` if that is not mapped.
pub fn read_user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Reads a text of the current process, `len` bytes long or, if that is 0, up to a NUL. Returns its length
/// and whether it was cut short.
pub fn read_user_text<const N: usize>(address: u64, len: u64, text: &mut [u8; N]) -> (u64, bool) {
    if len != 0 {
        let len = if len > N as u64 { N as u64 } else { len };
        // SAFETY: the buffer is valid for the length and the helper checks the address it reads.
        let outcome = unsafe {
            generated::bpf_probe_read_user(
                text.as_mut_ptr().cast(),
                len as u32,
                address as *const c_void,
            )
        };
        return (if outcome == 0 { len } else { 0 }, false);
    }
    // SAFETY: as above.
    let copied = unsafe {
        generated::bpf_probe_read_user_str(
            text.as_mut_ptr().cast(),
            N as u32,
            address as *const c_void,
        )
    };
    // The count includes the final NUL.
    let copied = if copied > 0 { copied as u64 - 1 } else { 0 };
    (copied, copied == N as u64 - 1)
}

/// Writes a `struct sockaddr` of the current process, `len` bytes long, into `event`.
pub fn describe_address(address: u64, len: u32, event: &mut Event) {
    let Some(family) = read_user::<u16>(address) else {
        return;
    };
    event.family = family;
    match family {
        AF_INET => {
            event.port = u16::from_be(read_user(address + 2).unwrap_or(0));
            let ip: [u8; 4] = read_user(address + 4).unwrap_or_default();
            event.text[..4].copy_from_slice(&ip);
            event.text_len = 4;
        }
        AF_INET6 => {
            event.port = u16::from_be(read_user(address + 2).unwrap_or(0));
            let ip: [u8; 16] = read_user(address + 8).unwrap_or_default();
            event.text[..16].copy_from_slice(&ip);
            event.text_len = 16;
        }
        AF_UNIX => {
            let path_len = len.saturating_sub(2).min(TEXT_LEN as u32);
            // SAFETY: the helper checks the address and fails instead of faulting.
            let copied =
                unsafe { bpf_probe_read_user_buf((address + 2) as *const u8, &mut event.text) };
            if copied.is_ok() {
                event.text_len = path_len;
            }
        }
        _ => {}
    }
}

/// The registers at the entry of a system call: a `struct pt_regs`, an argument of the program.
#[derive(Clone, Copy)]
pub struct Registers(pub u64);

impl Registers {
    /// The system call's argument of an index from 0 to 2.
    pub fn argument(self, index: usize) -> u64 {
        // `di`, `si` and `dx` of arch/x86/include/asm/ptrace.h.
        #[cfg(bpf_target_arch = "x86_64")]
        const OFFSETS: [u32; 3] = [112, 104, 96];
        // `regs[0]` to `regs[2]` of arch/arm64/include/asm/ptrace.h.
        #[cfg(bpf_target_arch = "aarch64")]
        const OFFSETS: [u32; 3] = [0, 8, 16];
        read_known(self.0, OFFSETS[index])
    }

    /// The number of the system call, at its exit too.
    pub fn number(self) -> i64 {
        // `orig_ax` of arch/x86/include/asm/ptrace.h.
        #[cfg(bpf_target_arch = "x86_64")]
        return read_known(self.0, 120);
        // `syscallno` of arch/arm64/include/asm/ptrace.h.
        #[cfg(bpf_target_arch = "aarch64")]
        return read_known::<i32>(self.0, 280).into();
    }

    /// The first argument at the exit of the call, when the result may be in its register.
    pub fn first_argument_at_exit(self) -> u64 {
        #[cfg(bpf_target_arch = "x86_64")]
        return self.argument(0);
        // `orig_x0` of arch/arm64/include/asm/ptrace.h.
        #[cfg(bpf_target_arch = "aarch64")]
        return read_known(self.0, 272);
    }
}

/// The system calls that matter.
#[derive(Clone, Copy)]
pub enum Call {
    /// fork(2) or vfork(2).
    Fork,
    Clone,
    Clone3,
    Bind,
    Listen,
    Accept,
    EpollCtl,
    EpollWait,
    Poll,
    Select,
}

impl Call {
    /// By the number in arch/x86/entry/syscalls/syscall_64.tbl.
    #[cfg(bpf_target_arch = "x86_64")]
    pub fn of(number: i64) -> Option<Self> {
        Some(match number {
            57 | 58 => Self::Fork,
            56 => Self::Clone,
            435 => Self::Clone3,
            49 => Self::Bind,
            50 => Self::Listen,
            43 | 288 => Self::Accept,
            233 => Self::EpollCtl,
            232 | 281 | 441 => Self::EpollWait,
            7 | 271 => Self::Poll,
            23 | 270 => Self::Select,
            _ => return None,
        })
    }

    /// By the number in include/uapi/asm-generic/unistd.h.
    #[cfg(bpf_target_arch = "aarch64")]
    pub fn of(number: i64) -> Option<Self> {
        Some(match number {
            220 => Self::Clone,
            435 => Self::Clone3,
            200 => Self::Bind,
            201 => Self::Listen,
            202 | 242 => Self::Accept,
            21 => Self::EpollCtl,
            22 | 441 => Self::EpollWait,
            73 => Self::Poll,
            72 => Self::Select,
            _ => return None,
        })
    }
}
