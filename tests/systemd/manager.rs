//! A systemd of a test's own: a manager of services, as of a user, with no units but those of the test.
//!
//! It is in a control group, and in namespaces of mounts and groups; of the pids it has those of the host, as
//! the probe needs. Not as pid 1: that would need pids of its own, and the units of a host, which change the
//! host. When dropped, all that it has started is killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use tempfile::TempDir;

use crate::support::{Killed, describe, finish, wait_until};

/// A /run in which a system looks as if it had been booted with systemd, without which a manager does not
/// start, and the groups below its own.
const SCRIPT: &str = "set -e
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system
    umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec \"$@\"";

/// A manager of services that runs.
pub struct Systemd {
    folder: TempDir,
    group: PathBuf,
    _manager: Killed,
}

impl Systemd {
    pub fn start() -> Self {
        let folder = TempDir::with_prefix("warmimg-systemd-").unwrap();
        for name in ["units", "run", "none"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        // All services depend on these.
        for target in ["basic", "default", "shutdown"] {
            let unit = folder.path().join(format!("units/{target}.target"));
            fs::write(unit, format!("[Unit]\nDescription={target}\n")).unwrap();
        }
        let group = group();
        fs::create_dir(&group).unwrap();
        let enter = "echo $$ > $0/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&group);
        command.args(["unshare", "--mount", "--cgroup", "sh", "-c", SCRIPT, "sh"]);
        command.args([
            "/usr/lib/systemd/systemd",
            "--user",
            "--unit=default.target",
        ]);
        let path = |name: &str| folder.path().join(name);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", "/root")
            .env("XDG_RUNTIME_DIR", path("run"))
            .env("SYSTEMD_UNIT_PATH", path("units"))
            .env("SYSTEMD_GENERATOR_PATH", path("none"))
            .env("SYSTEMD_ENVIRONMENT_GENERATOR_PATH", path("none"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let systemd = Self {
            _manager: Killed(command.spawn().unwrap()),
            group,
            folder,
        };
        wait_until("systemd", || {
            let output = systemd.try_control(&["is-active", "default.target"]);
            match output.status.success() {
                true => Ok(()),
                false => Err(describe(&output)),
            }
        });
        systemd
    }

    /// Adds a service, and what a test adds to it.
    pub fn add(&self, name: &str, unit: &str, more: &str) {
        let units = self.folder.path().join("units");
        let own = units.join(format!("{name}.service.d"));
        fs::create_dir(&own).unwrap();
        fs::write(units.join(format!("{name}.service")), unit).unwrap();
        fs::write(own.join("test.conf"), more).unwrap();
        self.control(&["daemon-reload"]);
    }

    fn try_control(&self, words: &[&str]) -> Output {
        let mut control = Command::new("systemctl");
        let runtime = self.folder.path().join("run");
        finish(
            control
                .arg("--user")
                .args(words)
                .env("XDG_RUNTIME_DIR", runtime),
        )
    }

    /// Runs systemctl(1), which must succeed; returns what it prints.
    pub fn control(&self, words: &[&str]) -> String {
        let output = self.try_control(words);
        let state = self.try_control(&["status", "--no-pager", "*.service"]);
        let described = format!("{words:?}: {}{}", describe(&output), describe(&state));
        assert!(output.status.success(), "{described}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A property of a service.
    pub fn show(&self, service: &str, property: &str) -> String {
        self.control(&["show", "--value", "-p", property, service])
    }

    /// The pid of the process that a service began with.
    pub fn main_pid(&self, service: &str) -> i32 {
        self.show(service, "MainPID").parse().unwrap()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        let events = self.group.join("cgroup.events");
        wait_until("the group to be empty", || {
            match fs::read_to_string(&events) {
                Ok(text) if text.contains("populated 1") => Err(text),
                _ => Ok(()),
            }
        });
        remove(&self.group);
    }
}

/// A group of version 2 that is not there yet, below that of this process.
fn group() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = procfs::process::Process::myself().unwrap();
    let mounts = process.mountinfo().unwrap();
    let mount = mounts
        .0
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2");
    let mount = mount.expect("control groups of version 2 are mounted");
    let groups = process.cgroups().unwrap();
    let own = groups.0.into_iter().find(|group| group.hierarchy == 0);
    let own = own.map(|group| group.pathname).unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("warmimg-systemd-{}-{number}", std::process::id());
    mount
        .mount_point
        .join(own.trim_start_matches('/'))
        .join(name)
}

/// Removes a group and those below it.
fn remove(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.for_each(|folder| remove(&folder.path()));
    let _ = fs::remove_dir(group);
}
