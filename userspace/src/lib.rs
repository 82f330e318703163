//! warmimg makes a slow-starting server start as if it had never stopped.
//!
//! The modules stand in the order of the flow:
//!
//! ```text
//! spawn → watch (eBPF) → freeze → dump (criu) → edit → store → restore → instance
//! ```
//!
//! The stages do not call one another; [`capture`](mod@capture) and [`restore`](mod@restore)
//! compose them, and [`commands`] makes programs of those. See ARCHITECTURE.md.

pub mod cli;
pub mod commands;

pub mod archive;
pub mod bench;
pub mod capture;
pub mod diff;
pub mod encryption;
pub mod profile;
pub mod proxy;
pub mod restore;
pub mod serve;

pub mod carry;
pub mod criu;
pub mod edit;
pub mod elsewhere;
pub mod fit;
pub mod freeze;
pub mod hook;
pub mod instance;
pub mod lock;
pub mod obstacle;
pub mod sensitive;
pub mod spawn;
pub mod store;
pub mod warmup;
pub mod watch;

pub mod doctor;
pub mod error;
pub mod report;
pub mod requirements;

mod apart;
pub mod aside;
mod build_id;
pub mod cgroup;
pub mod client;
pub mod cold;
mod files;
pub mod guard;
pub mod host;
pub mod listener;
pub mod memory;
pub mod network;
pub mod output;
mod private;
mod sock_diag;
mod sys;
pub mod target;
pub mod tree;
pub mod working_set;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
