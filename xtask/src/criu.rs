//! A CRIU that works on the running kernel.
//!
//! What is installed is kept if it passes `warmimg doctor`, which dumps and restores a real
//! server. Otherwise the package of the distribution, then of its newer releases, is tried, each
//! unpacked into a folder of its own with all the libraries it needs: nothing of the system is
//! replaced.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{run::Runner, stubs};

/// Where the program looks for it; userspace/src/criu/program.rs knows it.
pub const PREFIX: &str = "/usr/local/lib/warmimg/criu";

/// Releases of the distribution that have a newer CRIU, oldest first.
const NEWER: [&str; 3] = ["trixie", "forky", "sid"];

pub fn set_up(runner: &Runner) -> Result<()> {
    runner.cargo(&["build", "--quiet", "--locked", "--package", "warmimg"])?;
    if runner.is_dry() {
        runner.say("then: if `warmimg doctor` finds no CRIU that works, one is unpacked to");
        runner.say(&format!("      {PREFIX}, from this or a newer release,"));
        runner.say("      and given stubs of libraries that it loads and does not need here");
        return Ok(());
    }
    if works(runner) {
        return stubs::add(runner, || works(runner));
    }
    runner.say("the CRIU of this host does not work here (`warmimg doctor` tells why)");
    stubs::need_patchelf(runner)?;
    let own = own_release()?;
    for release in std::iter::once(own.as_str()).chain(NEWER) {
        runner.say(&format!("trying the CRIU of {release}, in {PREFIX}"));
        match unpack(runner, release) {
            Ok(()) if works(runner) => {
                runner.say("it works: dump and restore of a server succeeded");
                return stubs::add(runner, || works(runner));
            }
            Ok(()) => runner.say("it does not work on this kernel"),
            Err(error) => runner.say(&format!("not to be had: {error:#}")),
        }
        runner.run(runner.as_root("rm").args(["-rf", PREFIX]))?;
    }
    let mut doctor = runner.as_root(program(runner));
    let _ = runner.run(doctor.arg("doctor"));
    bail!("no CRIU works here; the findings above say what to mend")
}

fn program(runner: &Runner) -> PathBuf {
    runner.root.join("target/debug/warmimg")
}

fn works(runner: &Runner) -> bool {
    // The store is only for the cache of kernel data: the self-test has one of its own in it.
    let store = runner.root.join("target/setup-store");
    let mut doctor = runner.as_root(program(runner));
    runner.succeeds(doctor.arg("doctor").arg("--store").arg(store))
}

fn own_release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot tell the distribution")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(line
        .context("/etc/os-release names no release")?
        .trim_matches('"')
        .to_owned())
}

/// Downloads CRIU of a release with every library it needs, and unpacks them to the prefix.
fn unpack(runner: &Runner, release: &str) -> Result<()> {
    let place = runner.root.join("target/criu").join(release);
    let _ = fs::remove_dir_all(&place);
    for folder in [
        "sources",
        "lists/partial",
        "cache/archives/partial",
        "state",
        "empty",
        "root",
    ] {
        fs::create_dir_all(place.join(folder))?;
    }
    write_sources(&place.join("sources"), release)?;
    let configuration = place.join("apt.conf");
    let at = |folder: &str| place.join(folder).display().to_string();
    // An empty status makes apt resolve all that CRIU needs, down to the C library.
    let lines = [
        ("Dir::State", at("state")),
        ("Dir::State::lists", at("lists")),
        ("Dir::State::status", "/dev/null".to_owned()),
        ("Dir::Cache", at("cache")),
        ("Dir::Etc::sourcelist", "/dev/null".to_owned()),
        ("Dir::Etc::sourceparts", at("sources")),
        ("Dir::Etc::preferences", "/dev/null".to_owned()),
        ("Dir::Etc::preferencesparts", at("empty")),
        ("APT::Install-Recommends", "false".to_owned()),
        ("APT::Sandbox::User", "root".to_owned()),
        ("Debug::NoLocking", "true".to_owned()),
    ];
    let text: String = lines
        .map(|(key, value)| format!("{key} \"{value}\";\n"))
        .concat();
    fs::write(&configuration, text)?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("APT_CONFIG", &configuration);
        runner.run(command.stdout(std::process::Stdio::null()))
    };
    apt(&["update", "-qq"])?;
    apt(&["install", "-qq", "--yes", "--download-only", "criu"])?;
    let root = place.join("root");
    for package in fs::read_dir(place.join("cache/archives"))?.flatten() {
        let path = package.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut extract = Command::new("dpkg");
            if !runner.succeeds(extract.arg("-x").arg(&path).arg(&root)) {
                bail!("cannot unpack {}", path.display());
            }
        }
    }
    merge_usr(&root)?;
    point_to_libraries(runner, &root)?;
    runner.run(runner.as_root("rm").args(["-rf", PREFIX]))?;
    runner.run(runner.as_root("mkdir").arg("-p").arg(PREFIX))?;
    runner.run(
        runner
            .as_root("cp")
            .arg("-a")
            .arg(format!("{}/.", root.display()))
            .arg(PREFIX),
    )?;
    fs::remove_dir_all(&place)?;
    Ok(())
}

/// The host's own source of packages, with another release.
fn write_sources(folder: &Path, release: &str) -> Result<()> {
    let own = own_release()?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(more.map(|entry| entry.path()));
    for path in files {
        let text = fs::read_to_string(&path).unwrap_or_default();
        if path
            .extension()
            .is_some_and(|extension| extension == "sources")
        {
            let stanza = text
                .split("\n\n")
                .find(|stanza| is_main_stanza(stanza, &own));
            if let Some(stanza) = stanza {
                let lines = stanza
                    .lines()
                    .map(|line| match line.starts_with("Suites:") {
                        true => format!("Suites: {release}\n"),
                        false => format!("{line}\n"),
                    });
                fs::write(folder.join("criu.sources"), lines.collect::<String>())?;
                return Ok(());
            }
        } else if let Some(line) = text.lines().find(|line| is_main_line(line, &own)) {
            let line = line.replacen(&format!(" {own} "), &format!(" {release} "), 1);
            fs::write(folder.join("criu.list"), line + "\n")?;
            return Ok(());
        }
    }
    bail!("no source of packages for {own} in /etc/apt")
}

fn is_main_stanza(stanza: &str, release: &str) -> bool {
    let suites = stanza.lines().find_map(|line| line.strip_prefix("Suites:"));
    suites.is_some_and(|suites| suites.split_whitespace().any(|suite| suite == release))
}

fn is_main_line(line: &str, release: &str) -> bool {
    line.starts_with("deb ") && line.contains(&format!(" {release} "))
}

/// Older releases have /lib beside /usr/lib; one folder is enough here.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["lib", "lib64", "bin", "sbin"] {
        let old = root.join(name);
        if old.is_dir() && !old.is_symlink() {
            let mut copy = Command::new("cp");
            copy.arg("-a")
                .arg(format!("{}/.", old.display()))
                .arg(root.join("usr").join(name));
            fs::create_dir_all(root.join("usr").join(name))?;
            if copy.status().is_ok_and(|status| status.success()) {
                fs::remove_dir_all(&old)?;
                symlink(format!("usr/{name}"), &old)?;
            }
        }
    }
    Ok(())
}

/// Where a prefix has its libraries.
pub fn libraries() -> String {
    format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)
}

/// Makes the program use the libraries unpacked beside it. Only the program is changed: the C
/// library and the loader do not bear it.
fn point_to_libraries(runner: &Runner, root: &Path) -> Result<()> {
    let libraries = libraries();
    let loader = fs::read_dir(root.join(&libraries))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("ld-linux"))
        .context("the packages hold no loader")?;
    let mut patch = Command::new("patchelf");
    patch.arg("--set-interpreter");
    patch.arg(Path::new(PREFIX).join(&libraries).join(loader.file_name()));
    patch
        .arg("--set-rpath")
        .arg(Path::new(PREFIX).join(&libraries))
        .arg("--force-rpath");
    runner.run(patch.arg(root.join("usr/sbin/criu")))
}
