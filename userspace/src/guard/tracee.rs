//! A thread that is stopped for a moment, to have it execute system calls of ours.
//!
//! Invariant: when it goes on, it is where it was, with its registers and blocked signals.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use crate::sys::{
    self,
    ptrace::{self, Registers},
};

/// How long a thread may take to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// How long another may trace it meanwhile, as CRIU does at the end of a restore.
const TRACED_LIMIT: Duration = Duration::from_secs(1);

/// What a stop at the beginning or end of a system call shows.
const AT_CALL: i32 = libc::SIGTRAP | 0x80;

/// Why a thread could not be made to execute a system call.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("thread {0} is gone")]
    Gone(i32),
    #[error("thread {0} is traced by another process")]
    Traced(i32),
    #[error("thread {tid} does not stop where it should within {} s", .limit.as_secs())]
    Timeout { tid: i32, limit: Duration },
    #[error("cannot trace thread {tid}")]
    Failed { tid: i32, source: io::Error },
    #[error("thread {tid} cannot {call}")]
    Call {
        tid: i32,
        call: &'static str,
        source: io::Error,
    },
}

/// A thread that has been told to stop.
#[derive(Debug)]
pub struct Seized {
    tid: i32,
}

impl Seized {
    /// Attaches to a thread and tells it to stop before it executes any more in user mode.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn new(tid: i32) -> Result<Self, TraceError> {
        let begun = Instant::now();
        loop {
            match ptrace::seize(tid) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    if !is_alive(tid) {
                        return Err(TraceError::Gone(tid));
                    }
                    if begun.elapsed() > TRACED_LIMIT {
                        return Err(TraceError::Traced(tid));
                    }
                    pause();
                }
                Err(error) => return Err(failed(tid)(error)),
            }
        }
        let seized = Self { tid };
        ptrace::interrupt(tid).map_err(failed(tid))?;
        Ok(seized)
    }

    /// Waits until it stands still.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn stopped(self) -> Result<Stopped, TraceError> {
        let signal = delivered(wait(self.tid)?);
        let tid = self.tid;
        Ok(Stopped { tid, signal })
    }
}

/// A thread that stands still; it goes on when this is dropped.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    /// A signal that it was about to take when it stopped, and takes when it goes on; or 0.
    signal: i32,
}

impl Stopped {
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// # Errors
    /// See [`TraceError`].
    pub fn registers(&self) -> Result<Registers, TraceError> {
        ptrace::registers(self.tid).map_err(failed(self.tid))
    }

    /// Takes back a SIGSTOP of ours, which the thread alone was sent: before it or its process stops
    /// by it, or after. A stop by others stays.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn take_stop_back(&mut self, process: i32) -> Result<(), TraceError> {
        let tid = self.tid;
        if self.signal == libc::SIGSTOP {
            self.signal = 0;
            return Ok(());
        }
        let mask = ptrace::signal_mask(tid).map_err(failed(tid))?;
        // Nothing else is taken meanwhile, so none of its code runs either.
        ptrace::set_signal_mask(tid, !bit(libc::SIGCONT)).map_err(failed(tid))?;
        if is_pending(tid, libc::SIGSTOP, "SigPnd:")? {
            self.swallow(libc::SIGSTOP)?;
        } else if !is_pending(tid, libc::SIGSTOP, "ShdPnd:")? {
            // What continues a process is that it is sent; a handler for it need not know.
            sys::signal_thread(process, tid, libc::SIGCONT).map_err(failed(tid))?;
            self.swallow(libc::SIGCONT)?;
        }
        ptrace::set_signal_mask(tid, mask).map_err(failed(tid))
    }

    /// Lets it run until it would take a signal that it has been sent, which it then does not.
    fn swallow(&mut self, signal: i32) -> Result<(), TraceError> {
        while is_pending(self.tid, signal, "SigPnd:")? {
            ptrace::go_on(self.tid, self.signal).map_err(failed(self.tid))?;
            self.signal = delivered(wait(self.tid)?);
        }
        if self.signal == signal {
            self.signal = 0;
        }
        Ok(())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = ptrace::detach(self.tid, self.signal);
    }
}

/// The signal that a thread with this status is about to take; 0 if it has stopped for another
/// reason, which then shows above the signal.
fn delivered(status: i32) -> i32 {
    match status {
        AT_CALL => 0,
        status if status >> 8 == 0 => status,
        _ => 0,
    }
}

/// Whether a signal waits for a thread (`SigPnd:`) or for its process (`ShdPnd:`); see
/// proc_pid_status(5).
fn is_pending(tid: i32, signal: i32, field: &str) -> Result<bool, TraceError> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).map_err(failed(tid))?;
    let mask = status.lines().find_map(|line| line.strip_prefix(field));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Ok(mask.is_some_and(|mask| mask & bit(signal) != 0))
}

/// Of a signal, in a set of signals.
fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// A stopped thread that executes system calls in place of the one it was notified of, which it
/// begins anew when it goes on.
#[derive(Debug)]
pub struct Caller {
    thread: Stopped,
    /// The address behind the instruction of the system call.
    behind: u64,
    registers: Registers,
    mask: u64,
}

impl Caller {
    /// Takes over a thread. `behind` is the address behind an instruction that makes a system call.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn new(thread: Stopped, behind: u64) -> Result<Self, TraceError> {
        let tid = thread.tid;
        let caller = Self {
            behind,
            registers: ptrace::registers(tid).map_err(failed(tid))?,
            mask: ptrace::signal_mask(tid).map_err(failed(tid))?,
            thread,
        };
        ptrace::set_signal_mask(tid, u64::MAX).map_err(failed(tid))?;
        Ok(caller)
    }

    pub fn tid(&self) -> i32 {
        self.thread.tid
    }

    /// Has it execute a system call; returns the result.
    ///
    /// # Errors
    /// [`TraceError::Call`] with the errno, or see [`TraceError`].
    pub fn call(
        &mut self,
        call: &'static str,
        number: libc::c_long,
        arguments: [u64; 6],
    ) -> Result<u64, TraceError> {
        const LAST_ERRNO: i64 = 4095;
        let tid = self.thread.tid;
        let result = self.carry_out(number, arguments)?;
        if (-LAST_ERRNO..0).contains(&result) {
            let source = io::Error::from_raw_os_error(-result as i32);
            return Err(TraceError::Call { tid, call, source });
        }
        Ok(result as u64)
    }

    /// Has it execute a system call; returns what the kernel puts into the register for that: an
    /// errno is negative.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn carry_out(
        &mut self,
        number: libc::c_long,
        arguments: [u64; 6],
    ) -> Result<i64, TraceError> {
        let tid = self.thread.tid;
        let registers = arch::set_up(&self.registers, self.behind, number, arguments);
        ptrace::set_registers(tid, &registers).map_err(failed(tid))?;
        let begun = Instant::now();
        for _ in ["its beginning", "its end"] {
            // What it was about to take waits again, as all signals are blocked.
            let mut signal = std::mem::take(&mut self.thread.signal);
            loop {
                // Faults come again and again, as no handler is called.
                if begun.elapsed() > LIMIT {
                    return Err(TraceError::Timeout { tid, limit: LIMIT });
                }
                ptrace::go_on_to_call(tid, signal).map_err(failed(tid))?;
                match wait(tid)? {
                    AT_CALL => break,
                    // It is stopped, or told to stop, by job control; it stays so when detached.
                    libc::SIGSTOP => signal = libc::SIGSTOP,
                    _ => signal = 0,
                }
            }
        }
        Ok(arch::result(&ptrace::registers(tid).map_err(failed(tid))?))
    }

    /// Lets it go on where it was.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn go_back(self) -> Result<(), TraceError> {
        self.go_on(&self.registers)
    }

    /// Lets it begin its own system call anew.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn restart(self) -> Result<(), TraceError> {
        self.go_on(&arch::restart(&self.registers))
    }

    /// Lets it go on as if its own system call had failed.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn fail(self, errno: i32) -> Result<(), TraceError> {
        self.go_on(&arch::fail(&self.registers, errno))
    }

    fn go_on(&self, registers: &Registers) -> Result<(), TraceError> {
        let tid = self.thread.tid;
        ptrace::set_registers(tid, registers)
            .and_then(|()| ptrace::set_signal_mask(tid, self.mask))
            .map_err(failed(tid))
    }
}

/// Waits for the next stop of a thread; returns what it shows.
fn wait(tid: i32) -> Result<i32, TraceError> {
    let begun = Instant::now();
    loop {
        match ptrace::stop_of(tid) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(failed(tid)(error)),
        }
        let waited = begun.elapsed();
        if waited > Duration::from_millis(1) && !is_alive(tid) {
            return Err(TraceError::Gone(tid));
        }
        if waited > LIMIT {
            return Err(TraceError::Timeout { tid, limit: LIMIT });
        }
        pause();
    }
}

/// Whether a thread has not ended.
fn is_alive(tid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn pause() {
    std::thread::sleep(Duration::from_micros(20));
}

fn failed(tid: i32) -> impl Fn(io::Error) -> TraceError {
    move |source| match source.raw_os_error() {
        Some(libc::ESRCH | libc::ECHILD | libc::ENOENT) => TraceError::Gone(tid),
        _ => TraceError::Failed { tid, source },
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use crate::sys::ptrace::Registers;

    /// The length of `syscall`.
    const INSTRUCTION: u64 = 2;
    /// In place of the number of the system call that a thread is in: none.
    const NONE: u64 = u64::MAX;

    pub fn set_up(own: &Registers, behind: u64, number: i64, arguments: [u64; 6]) -> Registers {
        let mut registers = *own;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = arguments;
        registers.rax = number as u64;
        registers.orig_rax = NONE;
        registers.rip = behind - INSTRUCTION;
        registers
    }

    pub fn result(registers: &Registers) -> i64 {
        registers.rax as i64
    }

    pub fn restart(own: &Registers) -> Registers {
        let mut registers = *own;
        registers.rax = own.orig_rax;
        registers.rip = own.rip - INSTRUCTION;
        registers.orig_rax = NONE;
        registers
    }

    pub fn fail(own: &Registers, errno: i32) -> Registers {
        let mut registers = *own;
        registers.rax = -i64::from(errno) as u64;
        registers.orig_rax = NONE;
        registers
    }
}

/// Not reached: see [`super::supported`].
#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use crate::sys::ptrace::Registers;

    pub fn set_up(own: &Registers, _: u64, _: libc::c_long, _: [u64; 6]) -> Registers {
        *own
    }

    pub fn result(_: &Registers) -> i64 {
        -i64::from(libc::ENOSYS)
    }

    pub fn restart(own: &Registers) -> Registers {
        *own
    }

    pub fn fail(own: &Registers, _: i32) -> Registers {
        *own
    }
}
