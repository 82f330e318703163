//! Integration tests: real servers, the real kernel, the real CRIU. They need root; set-up of
//! what they use is `cargo xtask setup --tests`.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod archives;
mod bench;
mod checkpoint;
mod documents;
mod encryption;
mod errors;
mod exports;
mod faults;
mod fit;
mod flips;
mod gate;
mod hard;
mod hooks;
mod keep;
mod lifecycle;
mod limits;
mod load;
mod memory;
mod network;
mod obstacles;
mod pages;
mod points;
mod pools;
mod power;
mod profile;
mod proxy;
mod publish;
mod run;
mod secrets;
mod serve;
mod servers;
mod support;
mod systemd;
mod verify;
