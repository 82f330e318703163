//! What the tests share: a folder of their own with a store, running `warmimg`, asking servers,
//! and proof that nothing is left behind.

pub mod ask;
pub mod databases;
pub mod journal;
pub mod server;
pub mod servers;

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Output},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

/// How long any single step may take. Generous: the machines that run this are busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Marks every process that a test starts, directly or not.
const MARK: &str = "WARMIMG_TEST_FOLDER";

/// Held by every test, so that one that measures can have the machine for itself.
static MACHINE: RwLock<()> = RwLock::new(());

/// A test's hold on the machine.
enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

/// A folder for one test. When dropped, everything that was started in it is ended; a test that
/// passes calls [`Workspace::assert_clean`] first.
pub struct Workspace {
    folder: TempDir,
    /// The `warmimg` that is run.
    program: PathBuf,
    _turn: Turn,
}

impl Workspace {
    pub fn new() -> Self {
        let guard = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self::with(Turn::Shared(guard))
    }

    /// For one that measures: no other runs meanwhile, and the program is a copy, as install(1) makes
    /// one. What a linker has written page by page is cached in single pages, and takes 0.3 ms longer
    /// to start.
    pub fn alone() -> Self {
        let guard = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = Self::with(Turn::Alone(guard));
        let copy = workspace.path().join("warmimg");
        fs::copy(&workspace.program, &copy).unwrap();
        workspace.program = copy;
        workspace
    }

    fn with(turn: Turn) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("warmimg-test-")
            .tempdir()
            .unwrap();
        // Servers of other users work here too; the store inside is root's alone.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(folder.path(), open).unwrap();
        Self {
            folder,
            program: cargo_bin!("warmimg").to_path_buf(),
            _turn: turn,
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// Writes a file of the test; returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A `warmimg` command on this store.
    pub fn warmimg<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let mut command = std::process::Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.path())
            .env("WARMIMG_STORE", self.store());
        self.mark(&mut command);
        command
    }

    /// A `warmimg` command without a capability.
    pub fn without<S: AsRef<std::ffi::OsStr>>(
        &self,
        capability: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let warmimg = self.warmimg(arguments);
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--bounding-set", &format!("-{capability}")])
            .args(["--inh-caps", &format!("-{capability}"), "--"])
            .arg(warmimg.get_program())
            .args(warmimg.get_args())
            .current_dir(self.path())
            .env("WARMIMG_STORE", self.store());
        self.mark(&mut command);
        command
    }

    /// Marks what a command starts as belonging to this test.
    pub fn mark(&self, command: &mut std::process::Command) {
        command.env(MARK, self.path());
    }

    /// Runs a `warmimg` command that must succeed; returns its standard output.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let output = finish(&mut self.warmimg(arguments));
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a `warmimg` command that must fail with `code`; returns its standard error.
    pub fn fail<S: AsRef<std::ffi::OsStr>>(
        &self,
        code: i32,
        arguments: impl IntoIterator<Item = S>,
    ) -> String {
        let output = finish(&mut self.warmimg(arguments));
        assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
        String::from_utf8(output.stderr).unwrap()
    }

    /// The processes of this test that run, each with its name.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = [MARK.as_bytes(), b"=", self.path().as_os_str().as_bytes()].concat();
        let is_ours = |pid: &i32| {
            let has_mark = fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|bytes| bytes.split(|&byte| byte == 0).any(|entry| entry == mark));
            let works_here = fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(self.path()));
            has_mark || works_here
        };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid != std::process::id() as i32)
            .filter(is_ours)
            .map(|pid| {
                (
                    pid,
                    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default(),
                )
            })
            .collect()
    }

    /// Asserts that no process, mount, socket or half-made folder is left.
    pub fn assert_clean(&self) {
        wait_until("its processes to end", || {
            let left = self.processes();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        });
        let place = self.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(place)).collect();
        assert_eq!(mounts, [""; 0]);
        let sockets = fs::read_to_string("/proc/net/unix").unwrap();
        let sockets: Vec<_> = sockets
            .lines()
            .filter(|line| line.contains(place))
            .collect();
        assert_eq!(sockets, [""; 0]);
        for folder in ["staging", "instances"] {
            let path = self.store().join(folder);
            let left: Vec<_> = fs::read_dir(path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            assert!(left.is_empty(), "{folder}: {left:?}");
        }
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // What is open of a test that failed.
        let memory = self.store().join("memory");
        let _ = nix::mount::umount2(&memory, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Kills a child when dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Killed {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the end; returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the child to end", || match self.0.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                Ok(())
            }
            None => Err("it runs".to_owned()),
        });
        code
    }
}

/// A command below strace, which does not follow what it starts.
pub fn below_strace(command: &std::process::Command, options: &[&str]) -> std::process::Command {
    let mut strace = std::process::Command::new("strace");
    strace
        .args(options)
        .arg(command.get_program())
        .args(command.get_args());
    strace.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    strace.current_dir(command.get_current_dir().unwrap());
    strace
}

/// What `ps` tells of the only instance, once it is there.
pub fn wait_for_record(workspace: &Workspace) -> serde_json::Value {
    let mut record = serde_json::Value::Null;
    wait_until("the record of the instance", || {
        record = serde_json::from_str(&workspace.run(["--json", "ps"])).unwrap_or_default();
        match record.is_null() {
            true => Err("none".to_owned()),
            false => Ok(()),
        }
    });
    record
}

/// Runs a command to its end, or kills it at the limit.
pub fn finish(command: &mut std::process::Command) -> Output {
    assert_cmd::Command::from_std(clone_of(command))
        .timeout(LIMIT)
        .output()
        .unwrap()
}

/// Runs a command that must end with `code`; returns what it printed.
pub fn expect(code: i32, command: &mut std::process::Command) -> (String, String) {
    let output = finish(command);
    assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn clone_of(command: &std::process::Command) -> std::process::Command {
    let mut copy = std::process::Command::new(command.get_program());
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        copy.current_dir(folder);
    }
    copy
}

pub fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

/// Polls until `condition` holds; panics with what it said last at the limit.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + LIMIT;
    loop {
        match condition() {
            Ok(()) => return,
            Err(last) => assert!(Instant::now() < deadline, "waited for {what}: {last}"),
        }
        pause();
    }
}

/// Between two looks of a poll.
pub fn pause() {
    // Cut short by a signal is as good.
    let _ = nix::poll::poll(&mut [], 5_u8);
}

/// A TCP port that nothing listens on, and that no other test of this run gets. Below those that the
/// kernel gives to clients (ip_local_port_range of ip(7)): one of them could have it when it is needed.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another run may go on at the same time.
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(start) % COUNT;
        if std::net::TcpListener::bind(("127.0.0.1", FIRST + number)).is_ok() {
            return FIRST + number;
        }
    }
}

/// A file of the test servers that come with this repository.
pub fn fixture(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/servers");
    folder
        .join(path)
        .canonicalize()
        .unwrap()
        .display()
        .to_string()
}

/// A file of the tests.
pub fn source(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    folder.join(path).display().to_string()
}

/// A file that set-up prepared for the test servers.
pub fn prepared(path: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers");
    let path = folder.join(path);
    assert!(
        path.exists(),
        "{} is missing; run `cargo xtask setup --tests`",
        path.display()
    );
    path.display().to_string()
}
