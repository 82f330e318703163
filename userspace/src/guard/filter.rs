//! The seccomp filter that tells the guard of the calls it has to look at.
//!
//! Every system call of an instance passes it, so it asks for the number first: those of no interest
//! always get the same answer, which the kernel remembers and no longer runs the filter for. For
//! the others it looks at the addresses; only those near mapped memory stop.

use std::mem::offset_of;

use super::Guarded;
use crate::{edit::Traits, sys::seccomp::Instruction};

/// The number of the architecture that this is compiled for; see linux/audit.h.
pub(crate) const NATIVE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else {
    0xc000_00b7
};

/// The bit of x32 in the number of a system call; it tells the same calls.
pub(super) const X32: u32 = probe_ebpf::X32;

/// madvise(2) and mremap(2) of i386, which a 64-bit process can call as well.
const MADVISE_32: u32 = 219;
const MREMAP_32: u32 = 163;

/// `MADV_COLLAPSE` and `MADV_GUARD_INSTALL` of linux/mman.h.
const COLLAPSE: i32 = 25;
const GUARD_INSTALL: i32 = 102;

/// The advice that throws content away.
pub(super) const DISCARDS: [i32; 4] = [
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_DONTNEED_LOCKED,
    GUARD_INSTALL,
];

/// The advice that the guard has to look at: that which differs between anonymous memory and a
/// mapped file, and that which stays with the mapping, so that a mapping has been told nothing when
/// it is replaced.
const ADVICE: [i32; 12] = [
    DISCARDS[0],
    DISCARDS[1],
    DISCARDS[2],
    DISCARDS[3],
    libc::MADV_REMOVE,
    libc::MADV_WIPEONFORK,
    libc::MADV_DONTFORK,
    libc::MADV_MERGEABLE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    COLLAPSE,
];

/// Other calls on a range, which is in their first two arguments. What is locked or sealed cannot be
/// replaced any more.
pub(super) const ON_RANGES: [u32; 4] = [
    libc::SYS_mremap as u32,
    libc::SYS_mlock as u32,
    libc::SYS_mlock2 as u32,
    MSEAL,
];

/// Whether the guard has to look at this advice.
pub(super) fn differs(advice: i32) -> bool {
    ADVICE.contains(&advice)
}

/// mseal(2), which has the same number everywhere.
pub(super) const MSEAL: u32 = 462;
/// Of linux/userfaultfd.h.
pub(super) const UFFDIO_REGISTER: u32 = probe_ebpf::REGISTER_REQUEST;

/// Is in each filter of ours, so that it is known again in an image.
pub(crate) const MARK: u32 = 0x7761_726d;

/// Whether a program, as its bytes, is a filter of ours.
pub fn is_ours(program: &[u8]) -> bool {
    let mark = [[0; 4], MARK.to_ne_bytes()].concat();
    program
        .chunks(size_of::<Instruction>())
        .any(|chunk| chunk == mark)
}

/// Where the sum of the first two arguments is kept, low half and high half, and one more.
const END: [u32; 2] = [0, 1];
const CARRY: u32 = 2;

/// How much of the memory that was told something the filter knows; the guard knows all of it.
const MOST_TOLD: usize = 128;

/// The filter for mapped memory.
pub fn program(guarded: &Guarded) -> Vec<Instruction> {
    use libc::{BPF_ADD, BPF_ALU, BPF_AND, BPF_IMM, BPF_JGE, BPF_JMP, BPF_K, BPF_LD};
    use libc::{BPF_RET, BPF_X};
    let notify = || statement(BPF_RET | BPF_K, libc::SECCOMP_RET_USER_NOTIF);

    let mut filter = vec![
        // Numbers of another architecture: few that matter.
        load(offset_of!(libc::seccomp_data, arch)),
        is(NATIVE, 5, 0),
        number(),
        is(MADVISE_32, 2, 0),
        is(MREMAP_32, 1, 0),
        allow(),
        notify(),
        number(),
        statement(BPF_ALU | BPF_AND | BPF_K, !X32),
    ];
    // Each goes to the mark.
    filter.extend((0..ON_RANGES.len()).map(|place| {
        let behind = ON_RANGES.len() - 1 - place + 8 + ADVICE.len() + 1;
        is(ON_RANGES[place], behind as u8, 0)
    }));
    filter.extend([
        is(libc::SYS_madvise as u32, 6, 0),
        is(libc::SYS_process_madvise as u32, 4, 0),
        is(libc::SYS_mlockall as u32, 3, 0),
        is(libc::SYS_ioctl as u32, 0, ADVICE.len() as u8 + 4),
        argument(1, 0),
        is(UFFDIO_REGISTER, 0, ADVICE.len() as u8 + 2),
        notify(),
        argument(2, 0),
    ]);
    // Each goes to what is behind the `allow` that ends them.
    filter.extend((0..ADVICE.len()).map(|place| {
        let behind = (ADVICE.len() - place) as u8;
        is(ADVICE[place] as u32, behind, 0)
    }));
    filter.push(allow());
    // The mark is here and not at the begin, where it would cost each call.
    filter.push(statement(BPF_LD | BPF_IMM, MARK));
    // The end of the range of the call, in 64 bits.
    filter.extend([
        argument(1, 0),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        argument(0, 0),
        statement(BPF_ALU | BPF_ADD | BPF_X, 0),
        statement(libc::BPF_ST, END[0]),
        jump(BPF_JMP | BPF_JGE | BPF_X, 0, 2, 0),
        statement(BPF_LD | BPF_IMM, 1),
        jump(BPF_JMP | libc::BPF_JA, 1, 0, 0),
        statement(BPF_LD | BPF_IMM, 0),
        statement(libc::BPF_ST, CARRY),
        argument(1, 1),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        argument(0, 1),
        statement(BPF_ALU | BPF_ADD | BPF_X, 0),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        statement(BPF_LD | libc::BPF_MEM, CARRY),
        statement(BPF_ALU | BPF_ADD | BPF_X, 0),
        statement(libc::BPF_ST, END[1]),
    ]);
    filter.extend(told(&guarded.traits));
    let above = |value: u32, yes: u8, no: u8| jump(BPF_JMP | libc::BPF_JGT | BPF_K, value, yes, no);
    for &(first, behind) in &guarded.ranges {
        let (first, behind) = (halves(first + 1), halves(behind));
        filter.extend([
            // Not if it begins behind the range: goes to the next.
            argument(0, 1),
            above(behind[1], 9, 0),
            is(behind[1], 0, 2),
            argument(0, 0),
            jump(BPF_JMP | BPF_JGE | BPF_K, behind[0], 6, 0),
            // Nor if it ends before it.
            statement(BPF_LD | libc::BPF_MEM, END[1]),
            above(first[1], 3, 0),
            is(first[1], 0, 3),
            statement(BPF_LD | libc::BPF_MEM, END[0]),
            jump(BPF_JMP | BPF_JGE | BPF_K, first[0], 0, 1),
            notify(),
        ]);
    }
    filter.push(allow());
    filter
}

/// Allows the advice that a mapping was told before the capture: the guard would let it pass. CRIU gives
/// it once more to each, and Node.js has some fifty, each of which would stop for 35 µs.
fn told(traits: &[Traits]) -> Vec<Instruction> {
    use libc::{BPF_JA, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_MEM};
    let above = |value: u32, yes: u8, no: u8| jump(BPF_JMP | BPF_JGT | BPF_K, value, yes, no);
    let skip = |instructions: usize| jump(BPF_JMP | BPF_JA, instructions as u32, 0, 0);
    let within = |traits: &Traits| {
        let (first, behind) = (halves(traits.start), halves(traits.end));
        // Each goes to the next if it is not within.
        [
            argument(0, 1),
            above(first[1], 3, 0),
            is(first[1], 0, 8),
            argument(0, 0),
            jump(BPF_JMP | BPF_JGE | BPF_K, first[0], 0, 6),
            statement(BPF_LD | BPF_MEM, END[1]),
            above(behind[1], 4, 0),
            is(behind[1], 0, 2),
            statement(BPF_LD | BPF_MEM, END[0]),
            above(behind[0], 1, 0),
            allow(),
        ]
    };
    let mut all = Vec::new();
    let stays = |advice: &i32| !DISCARDS.contains(advice) && *advice != libc::MADV_REMOVE;
    for advice in ADVICE.into_iter().filter(stays) {
        let traits = traits.iter().take(MOST_TOLD);
        let told = traits.filter(|traits| traits.has(advice));
        let told: Vec<_> = told.flat_map(within).collect();
        if !told.is_empty() {
            all.extend([argument(2, 0), is(advice as u32, 1, 0), skip(told.len())]);
            all.extend(told);
        }
    }
    let begin = [
        number(),
        is(libc::SYS_madvise as u32, 1, 0),
        skip(all.len()),
    ];
    [begin.to_vec(), all].concat()
}

fn load(offset: usize) -> Instruction {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

/// Loads the number of the call.
fn number() -> Instruction {
    load(offset_of!(libc::seccomp_data, nr))
}

/// Loads a half of an argument: the low one is 0.
fn argument(index: usize, half: usize) -> Instruction {
    load(offset_of!(libc::seccomp_data, args) + 8 * index + 4 * half)
}

fn is(value: u32, yes: u8, no: u8) -> Instruction {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no)
}

fn allow() -> Instruction {
    statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)
}

fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

pub(crate) fn statement(code: u32, k: u32) -> Instruction {
    jump(code, k, 0, 0)
}

pub(crate) fn jump(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers for a call, by the rules of the kernel's networking/filter.rst.
    fn run(program: &[Instruction], arch: u32, nr: u32, args: [u64; 3]) -> u32 {
        let mut data = [nr, arch, 0, 0].to_vec();
        data.extend(args.iter().flat_map(|&value| halves(value)));
        let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let mut branch = |is: bool| at += usize::from(if is { jt } else { jf });
            match u32::from(code) {
                0x20 => a = data[k as usize / 4],
                0x00 => a = k,
                0x60 => a = memory[k as usize],
                0x02 => memory[k as usize] = a,
                0x07 => x = a,
                0x0c => a = a.wrapping_add(x),
                0x54 => a &= k,
                0x05 => at += k as usize,
                0x15 => branch(a == k),
                0x25 => branch(a > k),
                0x35 => branch(a >= k),
                0x3d => branch(a >= x),
                0x06 => return k,
                other => panic!("unknown code {other:#x}"),
            }
        }
    }

    const MADVISE: u32 = libc::SYS_madvise as u32;
    const MREMAP: u32 = libc::SYS_mremap as u32;
    const DONTNEED: u64 = libc::MADV_DONTNEED as u64;

    fn guarded(ranges: &[(u64, u64)], traits: &[Traits]) -> Guarded {
        Guarded {
            ranges: ranges.to_vec(),
            traits: traits.to_vec(),
            ..Guarded::default()
        }
    }

    /// Memory of this length that was told these, each a bit from `MADV_DONTFORK` on.
    fn told(start: u64, len: u64, advice: u64) -> Traits {
        Traits {
            start,
            end: start + len,
            is_unreserved: false,
            advice: advice << libc::MADV_DONTFORK,
        }
    }

    #[test]
    fn what_was_told_before_is_told_again_without_a_stop() {
        let (low, high) = (0x7fff_ffff_0000, 0x8000_1000_0000);
        let traits = [told(low, 0x2_0000, 1), told(high, 0x1000, 0b100)];
        let program = program(&guarded(&[(low, high + 0x1000)], &traits));
        let stops = |start, len, advice: i32| {
            let args = [start, len, advice as u64];
            run(&program, NATIVE, MADVISE, args) == libc::SECCOMP_RET_USER_NOTIF
        };
        for (start, len, advice, is_told) in [
            (low, 0x2_0000, libc::MADV_DONTFORK, true),
            (low + 0x1000, 0x1000, libc::MADV_DONTFORK, true),
            (low + 0x1_f000, 0x1000, libc::MADV_DONTFORK, true),
            (low, 0x2_0001, libc::MADV_DONTFORK, false),
            (low - 0x1000, 0x2000, libc::MADV_DONTFORK, false),
            (low, 0x1000, libc::MADV_DONTNEED, false),
            (low, 0x1000, libc::MADV_MERGEABLE, false),
            (high, 0x1000, libc::MADV_MERGEABLE, true),
            (high, 0x1000, libc::MADV_DONTFORK, false),
            (low, high - low, libc::MADV_DONTFORK, false),
        ] {
            assert_eq!(stops(start, len, advice), !is_told, "{start:#x} {len:#x}");
        }
        let moved = run(&program, NATIVE, MREMAP, [low, 0x1000, 10]);
        assert_eq!(moved, libc::SECCOMP_RET_USER_NOTIF);
    }

    #[test]
    fn only_calls_near_mapped_memory_are_told_of() {
        let ranges = [
            (0x5555_0000_0000, 0x5555_0010_0000),
            (0x7fff_ffff_0000, 0x8000_0001_0000),
        ];
        let program = program(&guarded(&ranges, &[]));
        let stops = |nr, args| run(&program, NATIVE, nr, args) == libc::SECCOMP_RET_USER_NOTIF;
        for (start, behind) in ranges {
            for (from, len, is_near) in [
                (start, 0x1000, true),
                (start - 0x1000, 0x1000, false),
                (start - 0x1000, 0x1001, true),
                (start - 0x1_0000_0000, 0x1_0000_1000, true),
                (start - 0x1_0000_0000, 0xffff_f000, false),
                (behind - 0x1000, 0x1000, true),
                (behind, 0x1000, false),
                (0x1000, 0x7fff_ffff_f000, true),
                (0xffff_8000_0000_0000, 0x1000, false),
            ] {
                for nr in [
                    MADVISE,
                    MREMAP,
                    MSEAL,
                    libc::SYS_mlock as u32,
                    MADVISE | X32,
                ] {
                    let args = [from, len, DONTNEED];
                    assert_eq!(stops(nr, args), is_near, "{nr} {from:#x} {len:#x}");
                }
            }
            assert!(!stops(MADVISE, [start, 0x1000, libc::MADV_WILLNEED as u64]));
            assert!(!stops(libc::SYS_munmap as u32, [start, 0x1000, 0]));
        }
        assert!(stops(libc::SYS_process_madvise as u32, [3, 0, 1]));
        assert!(stops(libc::SYS_mlockall as u32, [1, 0, 0]));
        assert!(stops(
            libc::SYS_ioctl as u32,
            [3, UFFDIO_REGISTER.into(), 0]
        ));
        assert!(!stops(libc::SYS_ioctl as u32, [3, 0x5401, 0]));
        assert!(!stops(libc::SYS_read as u32, [0; 3]));
        for (nr, is_told) in [(MADVISE_32, true), (MREMAP_32, true), (MADVISE, false)] {
            let answer = run(&program, 0x4000_0003, nr, [0; 3]);
            assert_eq!(answer == libc::SECCOMP_RET_USER_NOTIF, is_told);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn all_calls_that_stop_are_watched_for_interruptions() {
        let program = program(&guarded(&[(0, u64::MAX - 1)], &[]));
        for nr in 0..2048 {
            let is_watched = probe_ebpf::GUARDED_CALLS.contains(&nr);
            let stops = (0..256).any(|advice| {
                let args = [0x1000, 0x1000, advice];
                run(&program, NATIVE, nr, args) == libc::SECCOMP_RET_USER_NOTIF
            });
            assert_eq!(stops, is_watched, "{nr}");
        }
        assert_eq!(probe_ebpf::REGISTER_CALL, libc::SYS_ioctl as u32);
    }

    #[test]
    fn the_kernel_takes_the_largest() {
        const MOST_INSTRUCTIONS: usize = 4096;
        let ranges: Vec<_> = (1..=64).map(|n| (n << 32, (n << 32) + 4096)).collect();
        let traits: Vec<_> = (0..1000).map(|n| told(n << 32, 4096, 15)).collect();
        assert!(program(&guarded(&ranges, &traits)).len() < MOST_INSTRUCTIONS);
    }
}
