//! Carries out a call that a signal interrupted, so that its handler finds it done.
//!
//! The call waited for the guard, which had not received it yet. The thread stands before the first
//! instruction of the handler; what it returns to, and with what result, is in the frame on its
//! stack. The call is not left to begin anew: the next signals could interrupt it again, and again.

use std::{fs, os::unix::fs::FileExt as _};

use super::{
    Deed, Guard, GuardError, filter, process_of,
    replace::memory_of,
    tracee::{Caller, Seized},
};
use crate::{sys::seccomp::Notification, watch::interruptions::Interruption};

/// More handlers than that are not begun at once: there are not as many signals.
const MOST_FRAMES: usize = 64;

/// Where the registers lie in a frame: `struct rt_sigframe` of arch/x86/include/asm/sigframe.h
/// begins with an address, and `struct ucontext` with five words before them.
const REGISTERS: u64 = 8 + 5 * 8;

/// The order of `struct sigcontext_64` of uapi/asm/sigcontext.h, as far as needed.
const RDI: usize = 8;
const RSI: usize = 9;
const RDX: usize = 12;
const RAX: usize = 13;
const RSP: usize = 15;
const RIP: usize = 16;
const COUNT: usize = 17;

impl Guard {
    /// Carries the call out, and lets the thread go on with the handler.
    ///
    /// # Errors
    /// See [`GuardError`]: the call may have failed for the program then.
    pub(super) fn complete(&mut self, interruption: &Interruption) -> Result<(), GuardError> {
        let tid = interruption.tid as i32;
        let in_memory = |source| GuardError::Memory { pid: tid, source };
        if interruption.is_stopped == 0 {
            return Err(GuardError::Interrupted { tid });
        }
        let mut thread = Seized::new(tid)?.stopped()?;
        let memory = memory_of(tid).map_err(in_memory)?;
        let result = find_result(&memory, thread.registers()?.rsp, interruption)?;
        thread.take_stop_back(process_of(tid).unwrap_or(tid))?;

        let deed = self
            .deed(&notification(interruption))
            .map_err(|source| GuardError::Mappings { pid: tid, source })?;
        let others = match &deed {
            Deed::Replace(replacement) => replacement.stop_others(tid)?,
            Deed::Let | Deed::Fail(_) => vec![],
        };
        let mut caller = Caller::new(thread, interruption.behind)?;
        let refused = match &deed {
            Deed::Let => None,
            Deed::Fail(errno) => Some(*errno),
            Deed::Replace(replacement) => {
                let is_done = replacement.carry_out_by(&mut caller, &mut self.counters)?;
                (!is_done).then_some(libc::ENOMEM)
            }
        };
        drop(others);
        let value = match refused {
            Some(errno) => -i64::from(errno),
            None => caller.carry_out(interruption.call as libc::c_long, interruption.arguments)?,
        };
        memory
            .write_all_at(&value.to_le_bytes(), result)
            .map_err(in_memory)?;
        Ok(caller.go_back()?)
    }
}

/// The call as the guard would have been notified of it.
fn notification(interruption: &Interruption) -> Notification {
    Notification {
        id: 0,
        pid: interruption.tid,
        flags: 0,
        data: libc::seccomp_data {
            nr: interruption.call as i32,
            arch: filter::NATIVE,
            instruction_pointer: interruption.behind,
            args: interruption.arguments,
        },
    }
}

/// Where the call's result is, in the frame of the handler or below those of others, which are to
/// run first. `frame` is what the stack pointer of the thread shows.
fn find_result(
    memory: &fs::File,
    mut frame: u64,
    interruption: &Interruption,
) -> Result<u64, GuardError> {
    for _ in 0..MOST_FRAMES {
        let Some(registers) = read(memory, frame) else {
            break;
        };
        if is_of(interruption, &registers) {
            return Ok(frame + REGISTERS + 8 * RAX as u64);
        }
        frame = registers[RSP];
    }
    let tid = interruption.tid as i32;
    Err(GuardError::Interrupted { tid })
}

fn read(memory: &fs::File, frame: u64) -> Option<[u64; COUNT]> {
    let mut bytes = [0; COUNT * 8];
    let address = frame.checked_add(REGISTERS)?;
    memory.read_exact_at(&mut bytes, address).ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    let mut registers = [0; COUNT];
    for (register, word) in registers.iter_mut().zip(words) {
        *register = u64::from_le_bytes(*word);
    }
    Some(registers)
}

/// Whether these are what the interrupted call would return to.
fn is_of(interruption: &Interruption, registers: &[u64; COUNT]) -> bool {
    let failed = i64::from(-libc::EINTR) as u64;
    registers[RAX] == failed
        && registers[RIP] == interruption.behind
        && registers[RSP] == interruption.stack_pointer
        && [registers[RDI], registers[RSI], registers[RDX]] == interruption.arguments[..3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_frame_of_the_call_is_taken() {
        let interruption = Interruption {
            tid: 300,
            is_stopped: 1,
            call: 28,
            behind: 0x40_1002,
            stack_pointer: 0x7fff_0000,
            arguments: [0x5000, 0x1000, 4, 0, 0, 0],
        };
        let mut registers = [0; COUNT];
        registers[RAX] = i64::from(-libc::EINTR) as u64;
        registers[RIP] = 0x40_1002;
        registers[RSP] = 0x7fff_0000;
        (registers[RDI], registers[RSI], registers[RDX]) = (0x5000, 0x1000, 4);
        assert!(is_of(&interruption, &registers));
        for (register, other) in [(RAX, 0), (RIP, 0x40_1000), (RSP, 0x7ffe_0000), (RDX, 8)] {
            let mut registers = registers;
            registers[register] = other;
            assert!(!is_of(&interruption, &registers));
        }
    }
}
