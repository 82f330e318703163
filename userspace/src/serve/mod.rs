//! Servers that exist only while somebody asks: a gateway that owns their listening sockets.
//!
//! ```text
//! config ──► socket ──► site ──► restore (handoff) ──► instance
//!            listens    wakes,   with this socket      accepts by itself
//!                       watches, in place of the
//!                       ends     captured one
//! ```
//!
//! No byte of a connection passes here. A connection waits in the kernel until the server, restored
//! because of it, accepts it.
//!
//! Invariants: an instance is ended only when none of its connections is left, or when its time
//! to end by itself is over. A site is brought up once, however many ask.

mod accepted;
pub mod activation;
pub mod admin;
mod cold;
pub mod config;
mod drain;
mod error;
mod fleet;
mod front;
mod gateway;
mod journal;
mod keeper;
mod metrics;
mod overview;
mod places;
mod prefault;
mod recapture;
mod shared;
mod site;
pub mod socket;
mod superseded;
mod trace;
pub mod wakes;

pub use self::{
    config::{Config, ConfigError},
    error::GatewayError,
    front::FrontError,
    gateway::Gateway,
    journal::{Cause, Event, How, What},
    site::Status,
};
