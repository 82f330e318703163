//! What the kernel writes to a ring, record by record, and what is kept of it.

use std::io;

use linux_perf_event_reader::{
    BranchSampleFormat, ContextSwitchRecord, Endianness, EventRecord, RawData, RawEventRecord,
    ReadFormat, RecordIdParseInfo, RecordParseInfo, RecordType, SampleFormat, SampleRecord,
    TaskWasPreempted,
    constants::{
        PERF_CONTEXT_KERNEL, PERF_CONTEXT_MAX, PERF_CONTEXT_USER, PERF_RECORD_MISC_MMAP_BUILD_ID,
    },
};

/// What every sample holds.
pub fn format() -> SampleFormat {
    SampleFormat::IDENTIFIER
        | SampleFormat::IP
        | SampleFormat::TID
        | SampleFormat::TIME
        | SampleFormat::CALLCHAIN
        | SampleFormat::REGS_USER
        | SampleFormat::STACK_USER
}

/// The registers that unwinding begins with, by their numbers in asm/perf_regs.h.
#[cfg(target_arch = "x86_64")]
mod numbers {
    pub const FP: u64 = 6;
    pub const SP: u64 = 7;
    pub const IP: u64 = 8;
    /// There is none; the stack has the return address.
    pub const LR: u64 = IP;
}
#[cfg(target_arch = "aarch64")]
mod numbers {
    pub const FP: u64 = 29;
    pub const LR: u64 = 30;
    pub const SP: u64 = 31;
    pub const IP: u64 = 32;
}

/// The set of these registers, as a sample is asked for.
pub const REGISTERS: u64 =
    1 << numbers::FP | 1 << numbers::SP | 1 << numbers::IP | 1 << numbers::LR;

#[derive(Clone, Copy, Debug)]
pub struct Registers {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
    #[cfg_attr(
        target_arch = "x86_64",
        expect(dead_code, reason = "of other processors")
    )]
    pub lr: u64,
}

/// Where a thread was, before anything is made of it.
#[derive(Debug, Default)]
pub struct Raw {
    /// Addresses in the kernel, innermost first.
    pub kernel: Box<[u64]>,
    /// Addresses in the program that the kernel found by frame pointers, innermost first.
    pub chain: Box<[u64]>,
    /// Absent in a thread of the kernel.
    pub registers: Option<Registers>,
    /// The memory from the stack pointer on, as far as it was asked for and there.
    pub stack: Box<[u8]>,
}

impl Raw {
    /// How much memory it takes, about.
    pub fn size(&self) -> usize {
        size_of::<Self>() + (self.kernel.len() + self.chain.len()) * 8 + self.stack.len()
    }
}

/// A piece of executable memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// As the kernel names it, `//anon` for memory without a file.
    pub path: String,
}

#[derive(Debug)]
pub enum Kind {
    /// The clock found the thread on the processor.
    Running(Raw),
    /// The thread leaves the processor here.
    Leaving(Raw),
    /// It has left it.
    Left {
        is_preempted: bool,
    },
    /// It is on a processor again.
    Back,
    Mapped(Mapping),
    /// The process executes another program: all its mappings are gone.
    Executed,
    /// The process is a copy of this one.
    Forked {
        parent: i32,
    },
}

#[derive(Debug)]
pub struct Record {
    pub at_ns: u64,
    pub pid: i32,
    pub tid: i32,
    pub kind: Kind,
}

/// What was in a ring.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<Record>,
    /// Records that found no room.
    pub lost: u64,
}

impl Batch {
    /// Adds the contents of a ring, given in two pieces. `switches` is the number of the event that
    /// counts switches.
    pub fn read(&mut self, first: &[u8], second: &[u8], switches: u64) {
        let mut rest = RawData::Split(first, second);
        while !rest.is_empty() {
            // Without its length, what follows a record cannot be found.
            let Ok(raw) = next(&mut rest) else {
                self.lost = self.lost.saturating_add(1);
                return;
            };
            if self.read_one(&raw, switches).is_err() {
                self.lost = self.lost.saturating_add(1);
            }
        }
    }

    fn read_one(&mut self, raw: &RawEventRecord<'_>, switches: u64) -> io::Result<()> {
        if raw.record_type == RecordType::LOST_SAMPLES {
            let mut body = raw.data;
            let mut count = [0; 8];
            body.read_exact(&mut count)?;
            self.lost = self.lost.saturating_add(u64::from_le_bytes(count));
            return Ok(());
        }
        // Build ids were not asked for; their lengths would be believed.
        if raw.record_type == RecordType::MMAP2 && raw.misc & PERF_RECORD_MISC_MMAP_BUILD_ID != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let common = raw.common_data()?;
        let (mut pid, tid, at_ns) = (
            common.pid.unwrap_or_default(),
            common.tid.unwrap_or_default(),
            common.timestamp.unwrap_or_default(),
        );
        let kind = match raw.parse()? {
            EventRecord::Sample(sample) => {
                let is_switch = sample.id == Some(switches);
                let raw = keep(&sample);
                if is_switch {
                    Kind::Leaving(raw)
                } else {
                    Kind::Running(raw)
                }
            }
            EventRecord::ContextSwitch(ContextSwitchRecord::In { .. }) => Kind::Back,
            EventRecord::ContextSwitch(ContextSwitchRecord::Out { preempted, .. }) => Kind::Left {
                is_preempted: preempted == TaskWasPreempted::Yes,
            },
            EventRecord::Mmap2(mapped) => {
                pid = mapped.pid;
                Kind::Mapped(Mapping {
                    start: mapped.address,
                    end: mapped.address.saturating_add(mapped.length),
                    offset: mapped.page_offset,
                    path: String::from_utf8_lossy(&mapped.path.as_slice()).into_owned(),
                })
            }
            EventRecord::Comm(named) if named.is_execve => {
                pid = named.pid;
                Kind::Executed
            }
            EventRecord::Fork(fork) if fork.pid != fork.ppid => {
                pid = fork.pid;
                Kind::Forked { parent: fork.ppid }
            }
            EventRecord::Lost(lost) => {
                self.lost = self.lost.saturating_add(lost.count);
                return Ok(());
            }
            // New names and threads, and ends: nothing depends on them here.
            _ => return Ok(()),
        };
        self.records.push(Record {
            at_ns,
            pid,
            tid,
            kind,
        });
        Ok(())
    }
}

/// Takes a record off the front: kind, flags and length, then as much as that.
fn next<'a>(rest: &mut RawData<'a>) -> io::Result<RawEventRecord<'a>> {
    const HEADER: usize = 8;
    let mut header = [0; HEADER];
    rest.read_exact(&mut header)?;
    let [k0, k1, k2, k3, m0, m1, s0, s1] = header;
    let kind = RecordType(u32::from_le_bytes([k0, k1, k2, k3]));
    let length = usize::from(u16::from_le_bytes([s0, s1]))
        .checked_sub(HEADER)
        .ok_or(io::ErrorKind::InvalidData)?;
    let body = rest.split_off_prefix(length)?;
    let flags = u16::from_le_bytes([m0, m1]);
    Ok(RawEventRecord::new(kind, flags, body, shape()))
}

/// How the records are laid out, which follows from [`format`] and `sample_id_all`.
fn shape() -> RecordParseInfo {
    RecordParseInfo {
        endian: Endianness::LittleEndian,
        sample_format: format(),
        branch_sample_format: BranchSampleFormat::empty(),
        read_format: ReadFormat::empty(),
        // Each record ends with thread, time and event.
        common_data_offset_from_end: Some(24),
        sample_regs_user: REGISTERS,
        user_regs_count: REGISTERS.count_ones() as u8,
        sample_regs_intr: 0,
        intr_regs_count: 0,
        id_parse_info: RecordIdParseInfo {
            nonsample_record_id_offset_from_end: Some(8),
            sample_record_id_offset_from_start: Some(0),
        },
        nonsample_record_time_offset_from_end: Some(16),
        sample_record_time_offset_from_start: Some(24),
    }
}

fn keep(sample: &SampleRecord<'_>) -> Raw {
    let (mut kernel, mut chain) = (Vec::new(), Vec::new());
    if let Some(addresses) = &sample.callchain {
        let mut is_kernel = false;
        for address in (0..addresses.len()).filter_map(|index| addresses.get(index)) {
            match address {
                PERF_CONTEXT_KERNEL => is_kernel = true,
                PERF_CONTEXT_USER => is_kernel = false,
                // Of a guest or hypervisor.
                context if context >= PERF_CONTEXT_MAX => break,
                address if is_kernel => kernel.push(address),
                address => chain.push(address),
            }
        }
    }
    let registers = sample.user_regs.as_ref().and_then(|registers| {
        Some(Registers {
            ip: registers.get(numbers::IP)?,
            sp: registers.get(numbers::SP)?,
            fp: registers.get(numbers::FP)?,
            lr: registers.get(numbers::LR)?,
        })
    });
    let stack = sample.user_stack.as_ref().map(|(dump, filled)| {
        let bytes = dump.as_slice();
        bytes[..bytes.len().min(*filled as usize)].into()
    });
    Raw {
        kernel: kernel.into(),
        chain: chain.into(),
        registers,
        stack: stack.unwrap_or_default(),
    }
}
