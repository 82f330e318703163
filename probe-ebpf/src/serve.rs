//! What the counter of connections and user space say to each other.

use bytemuck::{Pod, Zeroable};

/// Listeners whose connections can be counted at once.
pub const MAX_LISTENERS: u32 = 16_384;

/// Where a TCP socket listens: the key of the map `PLACES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Place {
    /// IPv4 (the first 4 bytes) or IPv6, in network byte order; zeros stand for all addresses.
    pub address: [u8; 16],
    /// In host byte order.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
}

const _: () = assert!(size_of::<Place>() == 20);

/// The connections of a listener: a value of the map `CONNECTIONS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Connections {
    /// How many there are.
    pub open: i64,
    /// How many there have been, those that are open included.
    pub taken: i64,
    /// `CLOCK_MONOTONIC` of the initial time namespace when one last came or went, in nanoseconds.
    pub changed_ns: u64,
}

const _: () = assert!(size_of::<Connections>() == 24);

/// How many connections of a listener user space wants to be told of: a value of the map `BOUNDS`, which
/// the kernel takes back when it has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Bounds {
    /// If there are less.
    pub below: i64,
    /// If there are more.
    pub above: i64,
}

impl Bounds {
    /// Any number will do.
    pub const NONE: Self = Self {
        below: i64::MIN,
        above: i64::MAX,
    };
}

const _: () = assert!(size_of::<Bounds>() == 16);

/// A listener has more or less connections than user space wants to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LeftBounds {
    /// As [`Connections::changed_ns`].
    pub time_ns: u64,
    pub open: i64,
    /// The listener, as the map `PLACES` has it.
    pub number: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<LeftBounds>() == 24);

/// Byte offsets of the kernel's structure members that the counter reads, handed over as the global
/// `OFFSETS`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct ConnectionOffsets {
    pub family: u32,
    pub address: u32,
    pub address_v6: u32,
    pub port: u32,
    pub network: u32,
    pub network_inode: u32,
}

/// The members behind [`ConnectionOffsets`], in its order.
pub const CONNECTION_MEMBERS: [(&str, &str); 6] = [
    ("sock", "__sk_common.skc_family"),
    ("sock", "__sk_common.skc_rcv_saddr"),
    ("sock", "__sk_common.skc_v6_rcv_saddr"),
    ("inet_sock", "inet_sport"),
    ("sock", "__sk_common.skc_net.net"),
    ("net", "ns.inum"),
];

const _: () = assert!(size_of::<ConnectionOffsets>() == 4 * CONNECTION_MEMBERS.len());
