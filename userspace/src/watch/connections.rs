//! Counts the connections to TCP listeners of this network namespace, by a program in the kernel
//! (`probe-ebpf/src/connections.rs`).
//!
//! Invariant: a number stands for one listener at a time, from [`Counter::count`] to
//! [`Counter::forget`].

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, RingBuf},
    programs::RawTracePoint,
};
use probe_ebpf::serve as probe;
use tokio::io::unix::AsyncFd;

use super::{BTF_PATH, WatchError, btf::Btf};
use crate::{
    listener,
    sys::{self, Shared},
};

pub use probe::{Bounds, Connections, LeftBounds};

/// The program, built from `probe-ebpf` by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connections"));

const TRACEPOINT: &str = "inet_sock_set_state";

/// The attached program.
pub struct Counter {
    /// Detaches it when dropped.
    _ebpf: Ebpf,
    places: HashMap<MapData, Shared<probe::Place>, u32>,
    connections: Array<MapData, Shared<Connections>>,
    bounds: Array<MapData, Shared<Bounds>>,
    /// Connections that there were before they were counted.
    earlier: BTreeMap<u32, i64>,
    free: Vec<u32>,
    next: u32,
}

impl Counter {
    /// Loads and attaches the program.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn attach() -> Result<(Self, Told), WatchError> {
        let data = fs::read(BTF_PATH).map_err(WatchError::NoBtf)?;
        let btf = Btf::parse(&data)?;
        let mut offsets = [0; probe::CONNECTION_MEMBERS.len()];
        for (offset, (structure, member)) in offsets.iter_mut().zip(probe::CONNECTION_MEMBERS) {
            *offset = btf.offset(structure, member)?;
        }
        let network = own_network().map_err(WatchError::Network)?;
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", &offsets[..], true)
            .override_global("NETWORK", &network, true)
            .load(OBJECT)?;
        let mut take = |name| ebpf.take_map(name).ok_or(WatchError::Incomplete(name));
        let places = HashMap::try_from(take("PLACES")?)?;
        let connections = Array::try_from(take("CONNECTIONS")?)?;
        let bounds = Array::try_from(take("BOUNDS")?)?;
        let left_bounds = RingBuf::try_from(take("LEFT_BOUNDS")?)?;
        let refused = |source| WatchError::Program {
            tracepoint: TRACEPOINT,
            source: Box::new(source),
        };
        let program: &mut RawTracePoint = ebpf
            .program_mut("tcp_state")
            .ok_or(WatchError::Incomplete("tcp_state"))?
            .try_into()
            .map_err(refused)?;
        program.load().map_err(refused)?;
        program.attach(TRACEPOINT).map_err(refused)?;
        let counter = Self {
            _ebpf: ebpf,
            places,
            connections,
            bounds,
            earlier: BTreeMap::new(),
            free: vec![],
            next: 0,
        };
        let told = sys::readable(left_bounds).map_err(WatchError::Wait)?;
        Ok((counter, Told(told)))
    }

    /// Counts the connections to these addresses; returns their numbers. All at once: to see which connections
    /// there are already takes the kernel milliseconds.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn count(&mut self, addresses: &[SocketAddr]) -> Result<Vec<u32>, WatchError> {
        /// How often it is tried to look while no connection comes or goes.
        const TRIES: usize = 20;
        let mut numbers = vec![];
        for &address in addresses {
            let number = self.free.pop().unwrap_or(self.next);
            self.next = self.next.max(number + 1);
            self.connections
                .set(number, Shared(Connections::default()), 0)?;
            self.bounds.set(number, Shared(Bounds::NONE), 0)?;
            self.places.insert(Shared(place(address)), number, 0)?;
            numbers.push(number);
        }
        // Those whose connections came or went while it was looked.
        let mut unsure: Vec<_> = numbers.iter().copied().zip(addresses).collect();
        for _ in 0..TRIES {
            if unsure.is_empty() {
                break;
            }
            let before: Vec<_> = self.counted(&unsure)?;
            let there = listener::established();
            let after = self.counted(&unsure)?;
            for ((number, address), after) in unsure.iter().zip(&after) {
                let is_at = |local: &&SocketAddr| {
                    local.port() == address.port()
                        && (address.ip().is_unspecified() || local.ip() == address.ip())
                };
                let there = there.iter().filter(is_at).count() as i64;
                self.earlier.insert(*number, there - after.open);
            }
            let mut pairs = before.iter().zip(&after);
            unsure.retain(|_| pairs.next().is_some_and(|(before, after)| before != after));
        }
        Ok(numbers)
    }

    fn counted(&self, places: &[(u32, &SocketAddr)]) -> Result<Vec<Connections>, WatchError> {
        let mut counted = vec![];
        for (number, _) in places {
            counted.push(self.connections.get(number, 0)?.0);
        }
        Ok(counted)
    }

    /// Counts the connections of a listener no longer.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn forget(&mut self, address: SocketAddr, number: u32) -> Result<(), WatchError> {
        self.places.remove(&Shared(place(address)))?;
        self.free.push(number);
        Ok(())
    }

    /// The connections of a listener.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn of(&self, number: u32) -> Result<Connections, WatchError> {
        let mut counted = self.connections.get(&number, 0)?.0;
        counted.open += self.earlier.get(&number).copied().unwrap_or(0);
        Ok(counted)
    }

    /// Has [`Told`] tell once when a listener has less or more connections than this. Returns
    /// those that it has now.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn bound(&mut self, number: u32, bounds: Bounds) -> Result<Connections, WatchError> {
        let earlier = self.earlier.get(&number).copied().unwrap_or(0);
        let of_kernel = |bound: i64| match bound {
            i64::MIN | i64::MAX => bound,
            bound => bound - earlier,
        };
        let bounds = Bounds {
            below: of_kernel(bounds.below),
            above: of_kernel(bounds.above),
        };
        self.bounds.set(number, Shared(bounds), 0)?;
        self.of(number)
    }
}

/// What the kernel tells of listeners that have left their bounds.
pub struct Told(AsyncFd<RingBuf<MapData>>);

impl Told {
    /// Waits for the next. Can be cancelled without losing one.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn next(&mut self) -> Result<LeftBounds, WatchError> {
        loop {
            while let Some(item) = self.0.get_mut().next() {
                if let Ok(left) = bytemuck::try_pod_read_unaligned(&item) {
                    return Ok(left);
                }
            }
            let ready = self.0.readable_mut().await;
            ready.map_err(WatchError::Wait)?.clear_ready();
        }
    }
}

/// Where connections to an address are counted: one for both families takes those of IPv4 too, as such of
/// IPv6.
fn place(address: SocketAddr) -> probe::Place {
    let (family, address_bytes) = match address.ip() {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            (libc::AF_INET, bytes)
        }
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets()),
    };
    probe::Place {
        address: address_bytes,
        port: address.port(),
        family: family as u16,
    }
}

/// This network namespace, as the kernel numbers it.
fn own_network() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self/ns/net")?.ino() as u32)
}
