//! The HTTP proxy, as the gateway starts it: what clients send that is none, what they send that is, and
//! what real servers and clients make of it.

mod gateway;
mod http1;
mod operation;
mod real;
mod shapes;
mod tls;
