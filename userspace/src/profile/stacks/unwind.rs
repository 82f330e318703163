//! Finds the callers of where a thread was.
//!
//! Three ways, as each has its gaps: by the tables that compilers leave for exceptions; where these end
//! because the copy of the stack was too short, by another stack of the thread that runs through
//! the same call; and else by the frame pointers that the kernel followed.

use std::collections::HashMap;

use framehop::{CacheNative, Error, FrameAddress, UnwindRegsNative, Unwinder as _};

use super::{
    record::{Raw, Registers},
    space::{Place, Space, Spaces},
};

/// More frames than this are a loop, or no use to anyone.
const DEEPEST: usize = 1024;

/// A call that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Within the instruction that called.
    pub place: Place,
    /// The stack pointer in the caller; 0 if it is not known.
    sp: u64,
}

/// Where a thread was in its program, innermost first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stack {
    pub calls: Vec<Call>,
    /// Whether it goes on to where the thread began.
    pub is_complete: bool,
}

/// Unwinds the samples of all threads, in the order of time.
#[derive(Default)]
pub struct Unwinder {
    cache: CacheNative<framehop::MayAllocateDuringUnwind>,
    threads: Vec<i32>,
    stacks: Vec<Stack>,
    /// The latest complete stack of each thread.
    complete: HashMap<i32, usize>,
}

impl Unwinder {
    /// Adds a sample of a thread, with the memory of the processes as it is then.
    pub fn add(&mut self, spaces: &Spaces, pid: i32, tid: i32, raw: &Raw) {
        let mut stack = match (spaces.of(pid), raw.registers) {
            (Some(space), Some(registers)) if space.has(registers.ip) => {
                let is_first = |place| spaces.images.is_entry(place);
                self.follow_tables(space, is_first, pid, registers, raw)
            }
            // A thread of the kernel, or one whose program has just been replaced by another: it begins
            // in the kernel.
            (Some(_), _) | (None, None) => Stack {
                calls: Vec::new(),
                is_complete: !raw.kernel.is_empty(),
            },
            (None, Some(_)) => Stack::default(),
        };
        if let Some(&earlier) = self.complete.get(&tid) {
            join(&mut stack, &self.stacks[earlier]);
        }
        if stack.is_complete {
            self.complete.insert(tid, self.stacks.len());
        }
        self.threads.push(tid);
        self.stacks.push(stack);
    }

    /// The stacks of the samples in the order in which they were added.
    pub fn finish(mut self) -> Vec<Stack> {
        // What began below a call that was never seen whole before may have been seen after it.
        let mut later: HashMap<i32, usize> = HashMap::new();
        for index in (0..self.stacks.len()).rev() {
            let tid = self.threads[index];
            if let Some(&later) = later.get(&tid) {
                let mut stack = std::mem::take(&mut self.stacks[index]);
                join(&mut stack, &self.stacks[later]);
                self.stacks[index] = stack;
            }
            if self.stacks[index].is_complete {
                later.insert(tid, index);
            }
        }
        self.stacks
    }

    fn follow_tables(
        &mut self,
        space: &Space,
        is_first: impl Fn(Place) -> bool,
        pid: i32,
        registers: Registers,
        raw: &Raw,
    ) -> Stack {
        let base = registers.sp;
        let mut read = |address: u64| {
            let at = usize::try_from(address.wrapping_sub(base)).map_err(drop)?;
            let word = raw.stack.get(at..).and_then(|rest| rest.first_chunk());
            word.map(|word| u64::from_le_bytes(*word)).ok_or(())
        };
        let call = |address, sp| Call {
            place: space.place(pid, address),
            sp,
        };
        let mut now = native(registers);
        let mut at = FrameAddress::from_instruction_pointer(registers.ip);
        let mut calls = vec![call(registers.ip, base)];
        let mut is_complete = false;
        while calls.len() < DEEPEST {
            let found = space
                .unwinder
                .unwind_frame(at, &mut now, &mut self.cache, &mut read);
            let caller = match found {
                Ok(Some(address)) => FrameAddress::from_return_address(address),
                Ok(None) => None,
                // Frame pointers end so; but not in the function that was interrupted, which may have
                // none.
                Err(Error::ReturnAddressIsNull) if calls.len() > 1 => None,
                // The first function of a program, which is in assembly and has no table often.
                Err(_) if calls.last().is_some_and(|call| is_first(call.place)) => None,
                Err(_) => break,
            };
            let Some(caller) = caller else {
                is_complete = true;
                break;
            };
            let address = caller.address_for_lookup();
            // Registers were taken for what they are not.
            if !space.has(address) {
                break;
            }
            calls.push(call(address, now.sp()));
            at = caller;
        }
        if !is_complete {
            let rest = rest_of_chain(at, &raw.chain, space);
            calls.extend(rest.map(|address| call(address, 0)));
        }
        Stack { calls, is_complete }
    }
}

#[cfg(target_arch = "x86_64")]
fn native(registers: Registers) -> UnwindRegsNative {
    UnwindRegsNative::new(registers.ip, registers.sp, registers.fp)
}

#[cfg(target_arch = "aarch64")]
fn native(registers: Registers) -> UnwindRegsNative {
    UnwindRegsNative::new(registers.lr, registers.sp, registers.fp)
}

/// Has a stack that was cut short go on with a complete one of the same thread from a call that both
/// have: one that was made from the same place with the same stack pointer has not returned between
/// the two, or was made once more by the same callers.
fn join(stack: &mut Stack, whole: &Stack) {
    if stack.is_complete {
        return;
    }
    // The first is no call. What is beyond the one in common was found wrongly.
    for known in (1..stack.calls.len()).rev() {
        if let Some(same) = find(&whole.calls, stack.calls[known]) {
            stack.calls.truncate(known);
            stack.calls.extend_from_slice(&whole.calls[same..]);
            stack.is_complete = true;
            return;
        }
    }
}

/// Finds a call in a complete stack. Where the stack pointer is not known, there has to be no other from
/// the same place.
fn find(calls: &[Call], call: Call) -> Option<usize> {
    if call.sp != 0 {
        return calls.iter().position(|other| *other == call);
    }
    let mut same = calls
        .iter()
        .enumerate()
        .filter(|(_, other)| other.place == call.place);
    let (index, _) = same.next()?;
    same.next().is_none().then_some(index)
}

/// What frame pointers lead to beyond a frame.
fn rest_of_chain<'a>(
    outermost: FrameAddress,
    chain: &'a [u64],
    space: &'a Space,
) -> impl Iterator<Item = u64> + 'a {
    // The innermost is the address of an instruction; all others are to be returned to.
    let known = match outermost {
        FrameAddress::InstructionPointer(at) => (chain.first() == Some(&at)).then_some(0),
        FrameAddress::ReturnAddress(at) => chain.iter().position(|&known| known == at.get()),
    };
    let rest = known.map_or(&[][..], |known| &chain[known + 1..]);
    rest.iter()
        .map(|address| address.saturating_sub(1))
        .take_while(|&address| space.has(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::stacks::{record::Mapping, space::Spaces, store::ChangeKind};

    fn calls(of: &[(u64, u64)]) -> Vec<Call> {
        let call = |&(address, sp): &(u64, u64)| Call {
            place: Place::Made { pid: 1, address },
            sp,
        };
        of.iter().map(call).collect()
    }

    fn stack(of: &[(u64, u64)], is_complete: bool) -> Stack {
        Stack {
            calls: calls(of),
            is_complete,
        }
    }

    #[test]
    fn a_short_stack_goes_on_with_a_whole_one() {
        let whole = stack(&[(10, 100), (20, 200), (30, 300), (40, 400)], true);
        let mut short = stack(&[(50, 50), (25, 150), (30, 300), (99, 350)], false);
        join(&mut short, &whole);
        let joined = [(50, 50), (25, 150), (30, 300), (40, 400)];
        assert_eq!(
            short,
            stack(&joined, true),
            "what was found beyond the common call was wrong"
        );
    }

    #[test]
    fn without_a_stack_pointer_the_place_has_to_be_the_only_one() {
        let whole = stack(&[(10, 100), (20, 200), (20, 300), (30, 400)], true);
        let mut recursive = stack(&[(50, 50), (20, 0)], false);
        join(&mut recursive, &whole);
        assert!(!recursive.is_complete);
        let mut short = stack(&[(50, 50), (25, 0), (30, 0)], false);
        join(&mut short, &whole);
        assert_eq!(short, stack(&[(50, 50), (25, 0), (30, 400)], true));
    }

    #[test]
    fn another_stack_pointer_is_another_call() {
        let whole = stack(&[(10, 100), (20, 200)], true);
        let mut short = stack(&[(50, 50), (20, 150)], false);
        join(&mut short, &whole);
        assert_eq!(short, stack(&[(50, 50), (20, 150)], false));
    }

    #[test]
    fn a_later_stack_completes_those_before_it() {
        let deepest = stack(&[(90, 10), (80, 20), (70, 30)], false);
        let deep = stack(&[(75, 25), (70, 30), (60, 40)], false);
        let whole = stack(&[(65, 35), (60, 40), (50, 50)], true);
        let unwinder = Unwinder {
            threads: vec![1, 2, 1, 1],
            stacks: vec![deepest, stack(&[(1, 1)], false), deep, whole],
            ..Unwinder::default()
        };
        let stacks = unwinder.finish();
        let joined = [(90, 10), (80, 20), (70, 30), (60, 40), (50, 50)];
        assert_eq!(stacks[0], stack(&joined, true));
        assert!(!stacks[1].is_complete, "it is of another thread");
    }

    #[test]
    fn frame_pointers_lead_on_within_code() {
        let mut spaces = Spaces::default();
        let mapping = Mapping {
            start: 0x1000,
            end: 0x2000,
            offset: 0,
            path: "//anon".to_owned(),
        };
        spaces.change(1, &ChangeKind::Mapped(mapping));
        let space = spaces.of(1).unwrap();
        let chain = [0x1100, 0x1201, 0x1301, 0x9000, 0x1401];
        let rest = |at| rest_of_chain(at, &chain, space).collect::<Vec<_>>();
        let begin = FrameAddress::from_instruction_pointer;
        let call = |at| FrameAddress::from_return_address(at).unwrap();
        assert_eq!(rest(begin(0x1100)), [0x1200, 0x1300]);
        assert_eq!(rest(call(0x1201)), [0x1300]);
        assert!(rest(call(0x1211)).is_empty());
    }
}
