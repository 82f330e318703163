//! Counts the connections to listening TCP sockets in the kernel (see `serve` in user space).
//!
//! It looks at every change of the state of a TCP socket. A connection counts from its handshake until
//! nothing of it is left, whoever accepts it, and if nobody does yet. User space reads the counts
//! when it wants to know, and is told only when one leaves the bounds that it has set: so a busy
//! server does not wake it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// The library's atomics cannot add on this target.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use core::arch::asm;

    use aya_ebpf::{
        helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
        macros::{map, raw_tracepoint},
        maps::{Array, HashMap, RingBuf},
        programs::RawTracePointContext,
    };
    use probe_ebpf::serve::{
        Bounds, ConnectionOffsets, Connections, LeftBounds, MAX_LISTENERS, Place,
    };

    #[map]
    static PLACES: HashMap<Place, u32> = HashMap::with_max_entries(MAX_LISTENERS, 0);

    #[map]
    static CONNECTIONS: Array<Connections> = Array::with_max_entries(MAX_LISTENERS, 0);

    #[map]
    static BOUNDS: Array<Bounds> = Array::with_max_entries(MAX_LISTENERS, 0);

    #[map]
    static LEFT_BOUNDS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

    #[unsafe(no_mangle)]
    static OFFSETS: ConnectionOffsets = ConnectionOffsets {
        family: 0,
        address: 0,
        address_v6: 0,
        port: 0,
        network: 0,
        network_inode: 0,
    };

    /// The network namespace that the listeners are in, as stat(2) of its /proc/PID/ns/net has it.
    #[unsafe(no_mangle)]
    static NETWORK: u32 = 0;

    /// States of `include/net/tcp_states.h`.
    const ESTABLISHED: u64 = 1;
    const SYN_SENT: u64 = 2;
    const SYN_RECV: u64 = 3;
    const CLOSE: u64 = 7;
    const LISTEN: u64 = 10;

    macro_rules! offset {
        ($member:ident) => {
            // SAFETY: a valid, initialised static; volatile, as user space sets it.
            unsafe { core::ptr::read_volatile(&raw const OFFSETS.$member) }
        };
    }

    /// Reads a `T` of the kernel; `None` if that is not mapped.
    fn read<T>(base: u64, offset: u32) -> Option<T> {
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
    }

    #[raw_tracepoint(tracepoint = "inet_sock_set_state")]
    pub fn tcp_state(ctx: RawTracePointContext) -> i32 {
        let (old, new) = (ctx.arg::<u64>(1), ctx.arg::<u64>(2));
        let change = match (old, new) {
            (SYN_RECV, ESTABLISHED) => 1,
            (CLOSE | SYN_SENT | SYN_RECV | LISTEN, CLOSE) => return 0,
            (_, CLOSE) => -1,
            _ => return 0,
        };
        let _ = count(ctx.arg(0), change);
        0
    }

    /// Where the listener of a connection may be: at its own address, or at all.
    fn listener(sock: u64) -> Option<u32> {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        let family: u16 = read(sock, offset!(family))?;
        // That of `skc_num` is forgotten when the connection ends.
        let port = u16::from_be(read(sock, offset!(port))?);
        let mut place = Place {
            address: [0; 16],
            port,
            family,
        };
        match family {
            AF_INET => {
                let address: [u8; 4] = read(sock, offset!(address))?;
                place.address[..4].copy_from_slice(&address);
            }
            AF_INET6 => place.address = read(sock, offset!(address_v6))?,
            _ => return None,
        }
        // SAFETY: the value is read at once.
        if let Some(number) = unsafe { PLACES.get(&place) } {
            return Some(*number);
        }
        place.address = [0; 16];
        // SAFETY: as above.
        unsafe { PLACES.get(&place) }.copied()
    }

    /// Adds to a number that other processors add to at the same time.
    ///
    /// # Safety
    /// `number` is valid and aligned.
    unsafe fn add(number: *mut i64, change: i64) {
        // SAFETY: the caller's.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) change) };
    }

    fn count(sock: u64, change: i64) -> Option<()> {
        let number = listener(sock)?;
        let network: u64 = read(sock, offset!(network))?;
        // SAFETY: a valid, initialised static; volatile, as user space sets it.
        let own = unsafe { core::ptr::read_volatile(&raw const NETWORK) };
        if read::<u32>(network, offset!(network_inode))? != own {
            return None;
        }
        let counted = CONNECTIONS.get_ptr_mut(number)?;
        let bounds = BOUNDS.get_ptr_mut(number)?;
        // SAFETY: both are in the value of the map, aligned.
        unsafe {
            add(&raw mut (*counted).open, change);
            if change > 0 {
                add(&raw mut (*counted).taken, 1);
            }
        }
        // SAFETY: as above; each is a plain number. User space sets the bounds anew when it was told.
        let (open, time_ns) = unsafe {
            let time_ns = bpf_ktime_get_ns();
            (*counted).changed_ns = time_ns;
            let open = core::ptr::read_volatile(&raw const (*counted).open);
            if open <= (*bounds).above && open >= (*bounds).below {
                return None;
            }
            *bounds = Bounds::NONE;
            (open, time_ns)
        };
        let left = LeftBounds {
            time_ns,
            open,
            number,
            reserved: 0,
        };
        // If there is no room, user space has been woken already.
        let _ = LEFT_BOUNDS.output::<LeftBounds>(&left, 0);
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
