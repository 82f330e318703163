//! Databases that servers under test are connected to. All they write is in the workspace.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use nix::{sys::signal::Signal, unistd::User};
use procfs::net::TcpState;

use super::{Killed, LIMIT, Workspace, describe, finish, free_port, pause, wait_until};

/// A database that runs; it ends when this is dropped.
pub struct Database {
    pub port: u16,
    /// Where its clients are connected to.
    pub peer: String,
    /// Tells clients where it is.
    pub environment: Vec<(&'static str, String)>,
    start: Command,
    /// Counts one visit more, and prints how many there are.
    visit: Command,
    process: Option<Daemon>,
}

/// A PostgreSQL on TCP and, in the workspace, on a Unix socket.
pub fn postgresql(workspace: &Workspace) -> Database {
    let folder = workspace.path().join("postgresql");
    let programs = postgresql_programs();
    // It refuses to run as root.
    let user = User::from_name("postgres").unwrap().unwrap();
    let as_user = |program: &str| {
        let mut command = Command::new(programs.join(program));
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.current_dir(workspace.path());
        workspace.mark(&mut command);
        command.arg("-D").arg(&folder);
        command
    };
    let mut initdb = as_user("initdb");
    initdb.args(["--no-sync", "--auth=trust", "--username=postgres"]);
    initdb.args(["--no-locale", "--encoding=UTF8"]);
    let mut initdb = Killed(initdb.stdout(Stdio::null()).spawn().unwrap());
    assert_eq!(initdb.wait(), Some(0));

    let port = free_port();
    let text = port.to_string();
    let mut start = as_user("postgres");
    let sockets = workspace.path().display().to_string();
    start.args(["-h", "127.0.0.1", "-p", &text, "-k", &sockets, "-F"]);
    let mut visit = Command::new(programs.join("psql"));
    visit.args(["--no-psqlrc", "-qAt", "-c"]).arg(
        "CREATE TABLE IF NOT EXISTS visits (id serial); INSERT INTO visits DEFAULT VALUES; \
         SELECT count(*) FROM visits",
    );
    let environment = vec![
        ("PGHOST", "127.0.0.1".to_owned()),
        ("PGPORT", text),
        ("PGUSER", "postgres".to_owned()),
    ];
    Database::new(workspace, port, environment, start, visit)
}

/// Where the distribution has its programs, which are not on the path.
fn postgresql_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let mut programs = versions.map(|version| version.path().join("bin"));
    programs.find(|path| path.join("initdb").exists()).unwrap()
}

/// A Redis that stores nothing.
pub fn redis(workspace: &Workspace) -> Database {
    let port = free_port();
    let text = port.to_string();
    let mut start = Command::new("redis-server");
    start.args(["--bind", "127.0.0.1", "--port", &text, "--save", ""]);
    let mut visit = Command::new("redis-cli");
    visit.args(["-p", &text, "INCR", "visits"]);
    let environment = vec![("REDIS_PORT", text)];
    Database::new(workspace, port, environment, start, visit)
}

impl Database {
    fn new(
        workspace: &Workspace,
        port: u16,
        environment: Vec<(&'static str, String)>,
        mut start: Command,
        mut visit: Command,
    ) -> Self {
        start.stdin(Stdio::null());
        start.stdout(Stdio::null()).stderr(Stdio::null());
        visit.envs(environment.iter().map(|(name, value)| (name, value)));
        for command in [&mut start, &mut visit] {
            command.current_dir(workspace.path());
            workspace.mark(command);
        }
        let mut database = Self {
            port,
            peer: format!("tcp:127.0.0.1:{port}"),
            environment,
            start,
            visit,
            process: None,
        };
        database.restart();
        database
    }

    /// Ends it if it runs, and starts it; returns when it answers.
    pub fn restart(&mut self) {
        self.process = None;
        self.process = Some(Daemon(Killed(self.start.spawn().unwrap())));
        wait_until("the database to answer", || self.try_visit().map(drop));
    }

    /// Counts one visit more; returns how many there are.
    pub fn visit(&mut self) -> String {
        self.try_visit().unwrap()
    }

    /// Waits until nobody is connected to it by TCP.
    pub fn wait_until_left(&self) {
        wait_until("the connections to end", || {
            let mut sockets = procfs::net::tcp().unwrap().into_iter();
            let is_held = sockets.any(|socket| {
                socket.state == TcpState::Established && socket.local_address.port() == self.port
            });
            match is_held {
                true => Err("there is one".to_owned()),
                false => Ok(()),
            }
        });
    }

    fn try_visit(&mut self) -> Result<String, String> {
        let output = finish(&mut self.visit);
        if !output.status.success() {
            return Err(describe(&output));
        }
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

/// A process that cleans up when told to end: a killed PostgreSQL leaves shared memory behind.
struct Daemon(Killed);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGINT);
        let deadline = Instant::now() + LIMIT;
        while matches!(self.0.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            pause();
        }
    }
}
