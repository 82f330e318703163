//! The HTTP proxy: a process of its own, without rights, between clients and the sites behind one port.
//!
//! Each site has a socket that is always there and that the gateway holds. The proxy connects to it and
//! waits for an answer; that a site sleeps, and is woken by this connection, it does not know. What it
//! forwards is what it has understood, written anew: no byte of a head reaches a site as a client sent it.
//!
//! Its invariants: before the first byte from the network all rights are gone; no memory grows with what
//! others send; a request that could be understood in two ways goes nowhere.

mod accept;
mod client;
pub mod control;
pub mod fields;
pub mod hello;
pub mod http1;
mod http2;
mod own;
pub mod plan;
mod prefixed;
mod privileges;
mod record;
mod routes;
mod run;
mod site;
mod stream;
mod tls;
mod upstream;

pub use self::run::{ProxyError, run};
