//! ptrace(2), as far as it takes to have a thread execute a system call.

use std::{io, ptr};

pub use libc::user_regs_struct as Registers;

/// Attaches to a thread without stopping it. Its filters by seccomp(2) do not hold as long.
///
/// # Errors
/// What ptrace(2) says: `EPERM` if it is traced already, `ESRCH` if it is gone.
pub fn seize(tid: i32) -> io::Result<()> {
    /// `PTRACE_O_SUSPEND_SECCOMP` of linux/ptrace.h.
    const SUSPEND_SECCOMP: usize = 1 << 21;
    let options = libc::PTRACE_O_TRACESYSGOOD as usize | SUSPEND_SECCOMP;
    request(libc::PTRACE_SEIZE, tid, 0, options)
}

/// Stops a seized thread before it executes any more in user mode.
///
/// # Errors
/// What ptrace(2) says.
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread go on to the beginning or end of a system call, with a signal if not 0.
///
/// # Errors
/// What ptrace(2) says.
pub fn go_on_to_call(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize)
}

/// Lets a stopped thread go on to its next stop, with a signal if not 0.
///
/// # Errors
/// What ptrace(2) says.
pub fn go_on(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a stopped thread go, with a signal if not 0.
///
/// # Errors
/// What ptrace(2) says.
pub fn detach(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize)
}

/// The registers of a stopped thread.
///
/// # Errors
/// What ptrace(2) says.
pub fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: an all-zero structure of numbers is valid.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers).addr())?;
    Ok(registers)
}

/// Sets the registers of a stopped thread.
///
/// # Errors
/// What ptrace(2) says.
pub fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    request(
        libc::PTRACE_SETREGS,
        tid,
        0,
        ptr::from_ref(registers).addr(),
    )
}

/// The blocked signals of a stopped thread.
///
/// # Errors
/// What ptrace(2) says.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0_u64;
    let size = size_of::<u64>();
    request(libc::PTRACE_GETSIGMASK, tid, size, (&raw mut mask).addr())?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
///
/// # Errors
/// What ptrace(2) says.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    let size = size_of::<u64>();
    request(libc::PTRACE_SETSIGMASK, tid, size, (&raw const mask).addr())
}

/// The next stop of a traced thread, if it has come; its end is left to who waits for that.
///
/// # Errors
/// What waitid(2) says: `ECHILD` if it is gone.
pub fn stop_of(tid: i32) -> io::Result<Option<i32>> {
    // SAFETY: an all-zero structure is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` outlives the call.
    super::check(unsafe { libc::waitid(libc::P_PID, tid as libc::id_t, &raw mut info, options) })?;
    // SAFETY: waitid(2) has filled it in, with zeros if there is nothing to tell.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(status))
}

fn request(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: `data` is a number, or a pointer to what the callers above keep alive, of the size
    // that the request reads or writes. The memory of the tracee is not touched.
    let result = unsafe { libc::ptrace(request, tid, address, data) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
