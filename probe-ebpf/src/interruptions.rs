//! The eBPF program that watches for interruptions of guarded calls (see `guard` in user space).
//!
//! A call that waits for the guard can be interrupted until the guard has received it. If the handler
//! of the signal lacks `SA_RESTART`, the call would fail with `EINTR`, as no call on memory does. The
//! tracepoint is reached when the handler has been chosen and before its frame is set up; the thread
//! is told to stop here, and does so before it executes any of the handler. Then the guard has it
//! carry the call out, and puts the result into the frame.
//!
//! It is a program of its own, loaded at each restore that maps memory, and needs nothing of the
//! kernel's type information: what it reads is the same in all versions of the kernel.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use core::mem::offset_of;

    use aya_ebpf::{
        bindings::{bpf_pidns_info, task_struct},
        helpers::{
            bpf_probe_read_kernel,
            generated::{
                bpf_get_current_task_btf, bpf_get_ns_current_pid_tgid, bpf_send_signal,
                bpf_send_signal_thread, bpf_task_pt_regs,
            },
        },
        macros::{map, raw_tracepoint},
        maps::{Array, RingBuf},
        programs::RawTracePointContext,
    };
    use probe_ebpf::{
        GUARDED_CALLS, Interruption, Namespace, REGISTER_CALL, REGISTER_REQUEST, X32,
    };

    #[map]
    static INTERRUPTED: RingBuf = RingBuf::with_byte_size(1 << 16, 0);

    #[map]
    static NAMESPACE: Array<Namespace> = Array::with_max_entries(1, 0);

    const SIGKILL: u32 = 9;
    const SIGSTOP: u32 = 19;

    /// `struct pt_regs` of arch/x86/include/asm/ptrace.h.
    #[repr(C)]
    struct Registers {
        not_needed: [u64; 7],
        r10: u64,
        r9: u64,
        r8: u64,
        ax: u64,
        cx: u64,
        dx: u64,
        si: u64,
        di: u64,
        orig_ax: u64,
        ip: u64,
        cs: u64,
        flags: u64,
        sp: u64,
    }

    /// The beginning of `struct k_sigaction` of linux/signal_types.h, and `struct sigaction` there.
    #[repr(C)]
    struct Action {
        handler: u64,
        flags: u64,
    }

    impl Action {
        fn makes_calls_fail(&self) -> bool {
            /// `SIG_DFL` and `SIG_IGN`.
            const NONE: [u64; 2] = [0, 1];
            const SA_RESTART: u64 = 0x1000_0000;
            !NONE.contains(&self.handler) && self.flags & SA_RESTART == 0
        }
    }

    fn is_guarded(registers: &Registers) -> bool {
        let number = registers.orig_ax as u32 & !X32;
        GUARDED_CALLS.contains(&number)
            || (number == REGISTER_CALL && registers.si as u32 == REGISTER_REQUEST)
    }

    /// Reads a `T` of the kernel; `None` if that is not mapped.
    fn read<T>(address: u64) -> Option<T> {
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
    }

    #[raw_tracepoint(tracepoint = "signal_deliver")]
    pub fn signal_deliver(ctx: RawTracePointContext) -> i32 {
        let _ = look_at(ctx.arg(2));
        0
    }

    /// Looks at the delivery of a signal to the current thread, with this action.
    fn look_at(action: u64) -> Option<()> {
        /// The kernel's `ERESTARTSYS`, negative.
        const INTERRUPTED_CALL: i64 = -512;
        /// The code segment of 64-bit programs.
        const LONG_MODE: u64 = 0x33;
        // SAFETY: takes no arguments and returns the current task, which the other takes.
        let registers = unsafe {
            let task: *mut task_struct = bpf_get_current_task_btf();
            bpf_task_pt_regs(task) as u64
        };
        let ax: u64 = read(registers + offset_of!(Registers, ax) as u64)?;
        if ax as i64 != INTERRUPTED_CALL {
            return None;
        }
        let registers: Registers = read(registers)?;
        let action: Action = read(action)?;
        if !is_guarded(&registers) || registers.cs != LONG_MODE || !action.makes_calls_fail() {
            return None;
        }
        let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
        let namespace = NAMESPACE.get(0)?;
        // SAFETY: `ids` is valid and of the size that is told.
        let result = unsafe {
            bpf_get_ns_current_pid_tgid(
                namespace.device,
                namespace.inode,
                &raw mut ids,
                size_of::<bpf_pidns_info>() as u32,
            )
        };
        if result != 0 {
            return None;
        }
        let Some(mut entry) = INTERRUPTED.reserve::<Interruption>(0) else {
            // Hundreds of threads at once. It must not go on, and nobody would let it go on.
            // SAFETY: a plain number.
            unsafe { bpf_send_signal(SIGKILL) };
            return None;
        };
        // SAFETY: a plain number. It is sent when the kernel lets interrupts in again, which is when
        // it has taken the signal, and so before it sets the frame up.
        let sent = unsafe { bpf_send_signal_thread(SIGSTOP) };
        entry.write(Interruption {
            tid: ids.pid,
            is_stopped: (sent == 0) as u32,
            call: registers.orig_ax,
            behind: registers.ip,
            stack_pointer: registers.sp,
            arguments: [
                registers.di,
                registers.si,
                registers.dx,
                registers.r10,
                registers.r8,
                registers.r9,
            ],
        });
        entry.submit(0);
        Some(())
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// As of the probe: the object is under MIT or GPL.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
