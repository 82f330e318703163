//! Installs what is missing. Each step first looks whether there is anything to do, so that a
//! second run is quick and changes nothing.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{criu, run::Runner};

/// The toolchain that is linked to the distribution's compiler; userspace/build.rs knows it.
const LINKED: &str = "warmimg-ebpf";

/// A compiler with a `core` for eBPF, and the LLVM that it was built with.
const COMPILER: [&str; 7] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];

/// The servers of the integration tests, and the tools the tests use.
const SERVERS: [&str; 25] = [
    "nginx-light",
    "apache2",
    "libapache2-mod-php",
    "php-fpm",
    "uvicorn",
    "python3-fastapi",
    "gunicorn",
    "python3-django",
    "puma",
    "ruby-rails",
    "ruby-sqlite3",
    "tomcat10",
    "caddy",
    "postgresql",
    "python3-psycopg2",
    "ruby-pg",
    "redis-server",
    "age",
    "curl",
    "openssl",
    "strace",
    "systemd",
    "linux-perf",
    "wrk",
    "chromium",
];

/// What the tests' Node servers use. Each is in a folder of its own in target/servers.
const NODE_PACKAGES: [(&str, &str); 2] = [("express", "4.21.2"), ("redis", "5.9.0")];

/// What the tests read exported traces with, in a folder of its own in target/servers: Perfetto's
/// description of its format, and the library that it is written for.
const PYTHON_PACKAGES: [&str; 2] = ["perfetto==0.59.1", "protobuf==7.36.2"];

/// Installs what building needs and, for the tests, the servers.
pub fn set_up(runner: &Runner, tests: bool) -> Result<()> {
    c_compiler(runner)?;
    let uses_distribution = ebpf_toolchain(runner)?;
    bpf_linker(runner, uses_distribution)?;
    criu::set_up(runner)?;
    if tests {
        servers(runner)?;
    }
    Ok(())
}

fn c_compiler(runner: &Runner) -> Result<()> {
    if runner.look("cc", &["--version"]).is_some() {
        return Ok(());
    }
    runner.say("installing a C compiler, which links the programs");
    apt_install(runner, &["build-essential"])
}

/// Returns whether the distribution's compiler is the one that is used.
///
/// It comes first where there is one, since its LLVM can be installed as well: bpf-linker must be
/// built with the LLVM of the compiler, and that of a current nightly is usually newer than any
/// that the distribution has.
fn ebpf_toolchain(runner: &Runner) -> Result<bool> {
    if has_linked(runner) {
        return Ok(true);
    }
    if has_nightly_source(runner) && has_linker(runner) {
        return Ok(false);
    }
    if !is_offered(runner, COMPILER[0]) {
        runner.run(runner.as_root("apt-get").args(["update", "-qq"]))?;
    }
    if is_offered(runner, COMPILER[0]) {
        runner.say("installing the distribution's Rust compiler for eBPF, beside yours");
        apt_install(runner, &COMPILER)?;
        runner.run(Command::new("rustup").args(["toolchain", "link", LINKED, "/usr"]))?;
        return Ok(true);
    }
    runner.say("installing the eBPF toolchain: Rust nightly with the source of its core library");
    let mut nightly = Command::new("timeout");
    nightly.args(["600", "rustup", "toolchain", "install", "nightly"]);
    nightly.args(["--profile", "minimal", "--component", "rust-src"]);
    runner.run(&mut nightly)?;
    Ok(false)
}

/// Whether the distribution has a package.
fn is_offered(runner: &Runner, package: &str) -> bool {
    runner.look("apt-cache", &["show", package]).is_some()
}

fn has_linker(runner: &Runner) -> bool {
    runner.look("bpf-linker", &["--version"]).is_some()
}

fn has_linked(runner: &Runner) -> bool {
    runner
        .look("rustup", &["run", LINKED, "cargo", "--version"])
        .is_some()
        && Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir()
}

fn has_nightly_source(runner: &Runner) -> bool {
    runner
        .look("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])
        .is_some_and(|root| {
            Path::new(root.trim())
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        })
}

fn bpf_linker(runner: &Runner, uses_distribution: bool) -> Result<()> {
    if has_linker(runner) {
        return Ok(());
    }
    runner.say("installing bpf-linker");
    let mut install = Command::new("cargo");
    install.args(["install", "bpf-linker", "--locked", "--version", "0.13.0"]);
    if uses_distribution {
        // Built against the LLVM of the compiler; llvm-config is beside it.
        install.args(["--no-default-features", "--features", "llvm-22"]);
        let path = std::env::var("PATH").unwrap_or_default();
        install.env("PATH", format!("/usr/lib/llvm-22/bin:{path}"));
    }
    runner.run(&mut install)
}

fn servers(runner: &Runner) -> Result<()> {
    let mut packages = SERVERS.to_vec();
    // Taken as they are if the host has its own.
    for (program, package) in [
        ("node", "nodejs"),
        ("npm", "npm"),
        ("java", "default-jre-headless"),
    ] {
        if runner.look(program, &["--version"]).is_none() {
            packages.push(package);
        }
    }
    let missing: Vec<&str> = packages
        .into_iter()
        .filter(|package| !is_installed(runner, package))
        .collect();
    if !missing.is_empty() {
        runner.say("installing the servers that the tests run (none is started)");
        apt_install(runner, &missing)?;
    }
    for (package, version) in NODE_PACKAGES {
        node_package(runner, package, version)?;
    }
    python_packages(runner)
}

fn python_packages(runner: &Runner) -> Result<()> {
    let folder = runner.root.join("target/servers/perfetto");
    // What pip leaves of each package that it has installed.
    let is_there = |package: &str| {
        let name = package.replace("==", "-");
        folder.join(format!("{name}.dist-info")).is_dir()
    };
    if PYTHON_PACKAGES.iter().all(|package| is_there(package)) {
        return Ok(());
    }
    if runner
        .look("python3", &["-m", "pip", "--version"])
        .is_none()
    {
        runner.say("installing pip, for what the tests read traces with");
        apt_install(runner, &["python3-pip"])?;
    }
    runner.say("fetching Perfetto's description of its format for the tests");
    let mut install = Command::new("python3");
    install.args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]);
    install.args(["--disable-pip-version-check", "--target"]);
    runner.run(install.arg(&folder).args(PYTHON_PACKAGES))
}

fn node_package(runner: &Runner, package: &str, version: &str) -> Result<()> {
    let folder = runner.root.join("target/servers").join(package);
    if folder.join("node_modules").join(package).is_dir() {
        return Ok(());
    }
    runner.say(&format!(
        "fetching the Node package {package} for the tests"
    ));
    if !runner.is_dry() {
        fs::create_dir_all(&folder)?;
    }
    let mut install = Command::new("npm");
    install.args([
        "install",
        "--no-save",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
    ]);
    install.arg(format!("{package}@{version}"));
    runner.run(install.arg("--prefix").arg(&folder))
}

fn is_installed(runner: &Runner, package: &str) -> bool {
    runner
        .look("dpkg-query", &["-W", "-f", "${Status}", package])
        .is_some_and(|status| status.ends_with(" installed"))
}

/// Installs packages without starting the services in them.
pub fn apt_install(runner: &Runner, packages: &[&str]) -> Result<()> {
    let _quiet = NoServices::new(runner)?;
    runner.run(runner.as_root("apt-get").args(["update", "-qq"]))?;
    let mut install = runner.as_root("env");
    install.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-qq",
    ]);
    install
        .args(["--yes", "--no-install-recommends"])
        .args(packages);
    // dpkg's own messages, hundreds of lines, are of interest only if it fails.
    install.stdout(std::process::Stdio::null());
    runner.run(&mut install)
}

/// Keeps packages from starting their services, by the file that Debian has for this; one that is
/// there already is left alone.
struct NoServices<'a> {
    runner: &'a Runner,
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl<'a> NoServices<'a> {
    fn new(runner: &'a Runner) -> Result<Self> {
        let made = !runner.is_dry() && !Path::new(POLICY).exists();
        if made {
            let policy = runner.root.join("target/policy-rc.d");
            fs::create_dir_all(runner.root.join("target"))?;
            fs::write(&policy, "#!/bin/sh\nexit 101\n").context("cannot write the policy")?;
            let mut install = runner.as_root("install");
            runner.run(install.args(["-m", "755"]).arg(&policy).arg(POLICY))?;
        }
        Ok(Self { runner, made })
    }
}

impl Drop for NoServices<'_> {
    fn drop(&mut self) {
        if self.made {
            let _ = self
                .runner
                .run(self.runner.as_root("rm").args(["-f", POLICY]));
        }
    }
}
