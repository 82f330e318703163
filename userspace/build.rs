//! Builds the eBPF programs with the toolchain that `cargo xtask setup` prepared, and links the
//! program so that it starts fast.

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// The toolchain that set-up links to the distribution's compiler where rustup cannot download.
const LINKED: &str = "warmimg-ebpf";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    link_for_fast_start();
    let toolchains = Command::new("rustup")
        .args(["toolchain", "list"])
        .output()
        .context("rustup is needed to choose the compiler of the eBPF programs")?;
    let linked = String::from_utf8_lossy(&toolchains.stdout)
        .lines()
        .any(|line| line.starts_with(LINKED));
    let toolchain = if linked {
        allow_unstable();
        Toolchain::Custom(LINKED)
    } else {
        Toolchain::Nightly
    };
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../probe-ebpf");
    let package = Package {
        name: "probe-ebpf",
        root_dir,
        ..Default::default()
    };
    aya_build::build_ebpf([package], toolchain)
        .context("the eBPF programs do not build; `cargo xtask setup` installs what they need")
}

/// What the loader needs not do takes no time at each start: 13,800 relocations, which touch 70
/// pages, go with a fixed address; libgcc_s, which asks a virtual machine's host about the processor
/// when it is loaded, goes with its unwinder in the program.
fn link_for_fast_start() {
    println!("cargo:rustc-link-arg-bin=warmimg=-no-pie");
    let found = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    // The bare name where the compiler has none.
    let is_there = found
        .is_ok_and(|found| Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_absolute());
    if is_there {
        println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    }
}

/// aya-ebpf uses `asm_experimental_arch`, which a stable compiler has behind this switch. It is set
/// here and not for the whole workspace, where it would change other crates.
#[expect(
    unsafe_code,
    reason = "set_var is unsafe only with other threads about"
)]
fn allow_unstable() {
    // SAFETY: a build script's main thread, before it starts another.
    unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
}
