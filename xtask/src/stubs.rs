//! Makes the CRIU in the prefix start faster: stubs in place of two libraries that it loads at
//! every start and that warmimg never has it use.
//!
//! libgnutls and libnftables bring 12 of the 20 libraries that the loader maps and relocates. The
//! stubs, with links to all that is still needed, are in one folder that is searched first. The
//! loader decides whether they are all that CRIU asks for, and `warmimg doctor` whether it still
//! works; if not, CRIU keeps what it came with.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    criu::{PREFIX, libraries},
    run::Runner,
    setup::apt_install,
};

/// The libraries that have a stub, as the sources and the files of versions are called.
const STUBS: [&str; 2] = ["gnutls", "nftables"];

/// What the stubs in a prefix were made from; the last thing to be written.
const MARKER: &str = "made-from";

/// Gives the CRIU in the prefix, if it is there, the stubs of this checkout, if it has not.
pub fn add(runner: &Runner, works: impl Fn() -> bool) -> Result<()> {
    let criu = format!("{PREFIX}/usr/sbin/criu");
    let sources = sources(runner)?;
    let marker = format!("{}/{MARKER}", folder());
    if !Path::new(&criu).exists() || fs::read_to_string(&marker).is_ok_and(|old| old == sources) {
        return Ok(());
    }
    runner.say("making CRIU start faster: stubs for two libraries that it does not need here");
    need_patchelf(runner)?;
    let root = |program: &str, arguments: &[&str]| {
        let mut command = runner.as_root(program);
        runner.run(command.args(arguments))
    };
    let new = format!("{criu}.new");
    let added = place(runner, &criu, &new).and_then(|()| {
        root("mv", &[&new, &criu])?;
        ensure!(works(), "`warmimg doctor` finds that it does not work");
        Ok(())
    });
    if let Err(error) = added {
        // Without the folder the loader finds the libraries that CRIU came with.
        root("rm", &["-rf", &new, &folder()])?;
        root("touch", &[&criu])?;
        runner.say(&format!("CRIU keeps all its libraries: {error:#}"));
        return Ok(());
    }
    let text = build_folder(runner).join(MARKER);
    fs::write(&text, sources)?;
    root("cp", &[&text.to_string_lossy(), &marker])
}

/// What the program that changes search paths is needed for: this, and the unpacking before it.
pub fn need_patchelf(runner: &Runner) -> Result<()> {
    match runner.look("patchelf", &["--version"]) {
        Some(_) => Ok(()),
        None => apt_install(runner, &["patchelf"]),
    }
}

/// Where the stubs are.
fn folder() -> String {
    format!("{PREFIX}/start")
}

fn build_folder(runner: &Runner) -> PathBuf {
    runner.root.join("target/criu/start")
}

/// Everything that the stubs are made from, this file included.
fn sources(runner: &Runner) -> Result<String> {
    let folder = runner.root.join("xtask/stubs");
    let mut text = include_str!("stubs.rs").to_owned();
    let files = fs::read_dir(&folder)?.flatten();
    let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
    paths.sort();
    for path in paths {
        text += &fs::read_to_string(path)?;
    }
    Ok(text)
}

/// Puts the stubs into the prefix, and a CRIU that uses them beside the one that is there.
///
/// It is a new file: what warmimg keeps of the kernel (userspace/src/criu/kerndat.rs) is for one
/// CRIU, by its size and time, and not used for this.
fn place(runner: &Runner, criu: &str, new: &str) -> Result<()> {
    let built = build(runner, criu)?;
    let folder = folder();
    // A CRIU that starts meanwhile finds the libraries where they are without this folder.
    runner.run(runner.as_root("rm").args(["-rf", &folder]))?;
    // Not with the owner of the checkout.
    let mut copy = runner.as_root("cp");
    runner.run(copy.arg("-dR").arg(&built).arg(&folder))?;
    runner.run(runner.as_root("chmod").args(["-R", "a+rX", &folder]))?;
    runner.run(runner.as_root("cp").args([criu, new]))?;
    let mut patch = runner.as_root("patchelf");
    patch
        .arg("--set-rpath")
        .arg(format!("{folder}:{PREFIX}/{}", libraries()));
    runner.run(patch.arg("--force-rpath").arg(new))?;
    // Whatever CRIU refers to must be found now, not when it is first called.
    let bound = Command::new(new)
        .arg("--version")
        .env("LD_BIND_NOW", "1")
        .output()?;
    let said = String::from_utf8_lossy(&bound.stderr);
    ensure!(
        bound.status.success(),
        "it asks for what the stubs have not: {}",
        said.trim()
    );
    Ok(())
}

/// Compiles the stubs under the names by which a CRIU asks for them, with links to the libraries
/// that have none: then the loader looks nowhere else.
fn build(runner: &Runner, criu: &str) -> Result<PathBuf> {
    let built = build_folder(runner);
    let _ = fs::remove_dir_all(&built);
    fs::create_dir_all(&built)?;
    let needed = runner
        .look("patchelf", &["--print-needed", criu])
        .context("patchelf does not tell what CRIU needs")?;
    for stub in STUBS {
        let name = needed
            .lines()
            .find(|name| name.starts_with(&format!("lib{stub}.so.")));
        let Some(name) = name else {
            bail!("it does not use lib{stub}");
        };
        let source = runner.root.join("xtask/stubs").join(stub);
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-Wall", "-Wextra", "-Werror", "-fPIC"]);
        compile.args(["-shared", "-nostartfiles", "-s"]);
        compile.arg(format!("-Wl,-soname,{name}"));
        let versions = source.with_extension("map");
        compile.arg(format!("-Wl,--version-script,{}", versions.display()));
        compile.arg("-o").arg(built.join(name));
        runner.run(compile.arg(source.with_extension("c")))?;
    }
    for library in fs::read_dir(Path::new(PREFIX).join(libraries()))?.flatten() {
        let name = library.file_name();
        let link = built.join(&name);
        if name.to_string_lossy().contains(".so.") && !link.exists() {
            symlink(Path::new("..").join(libraries()).join(&name), link)?;
        }
    }
    Ok(built)
}
