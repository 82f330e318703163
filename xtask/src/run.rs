//! Runs commands: says each before it runs, or, in a dry run, instead.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

pub struct Runner {
    dry: bool,
    /// The root of the checkout.
    pub root: PathBuf,
    is_root: bool,
}

impl Runner {
    pub fn new(dry: bool) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("no workspace")?;
        let id = Command::new("id")
            .arg("-u")
            .output()
            .context("cannot run id")?;
        let is_root = id.stdout.trim_ascii() == b"0";
        Ok(Self {
            dry,
            root: root.to_path_buf(),
            is_root,
        })
    }

    pub fn is_dry(&self) -> bool {
        self.dry
    }

    /// Says what is done next.
    pub fn say(&self, text: &str) {
        println!("xtask: {text}");
    }

    /// Runs a command that must succeed.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        println!("     $ {}", show(command));
        if self.dry {
            return Ok(());
        }
        let status = command.stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("cannot run {}", show(command)))?;
        ensure!(status.success(), "{} failed: {status}", show(command));
        Ok(())
    }

    /// A command that needs root: with sudo, if this is not root.
    pub fn as_root(&self, program: impl AsRef<OsStr>) -> Command {
        if self.is_root {
            return Command::new(program);
        }
        let mut command = Command::new("sudo");
        command.arg("--").arg(program);
        command
    }

    /// Runs cargo in the checkout.
    pub fn cargo(&self, arguments: &[&str]) -> Result<()> {
        self.run(&mut self.cargo_command(arguments))
    }

    /// Runs cargo in the checkout, what it builds being run as root.
    pub fn cargo_as_root(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.cargo_command(arguments);
        if !self.is_root {
            let target = format!(
                "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
                std::env::consts::ARCH
            );
            command.env(target.to_uppercase(), "sudo -E --");
        }
        self.run(&mut command)
    }

    /// A cargo that works on the checkout.
    pub fn cargo_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// The standard output of a command that only looks; nothing if it fails.
    pub fn look(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether a command that only looks succeeds.
    pub fn succeeds(&self, command: &mut Command) -> bool {
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
