//! The eBPF programs. They filter, record and stop; deciding is user space's work.
//!
//! Only tasks of the followed process tree are ever looked at or stopped: user space puts the
//! root in `TREE`, forks add to it and exits remove from it, so CRIU and everything else on the
//! machine pass by after one map look-up.
//!
//! All programs attach to raw tracepoints by BTF, which needs no tracefs. Attaching to functions
//! (fentry) would leave the machine's other system calls on their fast path, but kernels under
//! lockdown refuse it (EPERM on the reference machine).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod opens;
#[cfg(target_arch = "bpf")]
mod profile;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The programs come with warmimg under MIT OR Apache-2.0 and, as an object that the kernel
/// loads, under MIT or GPL: helpers like `bpf_probe_read_kernel` are for GPL-compatible ones.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
