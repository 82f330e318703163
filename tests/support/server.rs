//! A server under test, and the round that each goes through.

use std::{os::unix::process::CommandExt as _, path::Path, process::Stdio};

use nix::sys::signal::Signal;

use super::{Killed, Workspace, ask::Client, wait_until};

/// A server as a person would start it.
pub struct Server {
    pub command: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    /// The user to run as, if not root.
    pub user: Option<&'static str>,
    pub client: Client,
}

impl Server {
    pub fn new<S: Into<String>>(client: Client, command: impl IntoIterator<Item = S>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self {
            command,
            environment: vec![],
            user: None,
            client,
        }
    }

    pub fn environment(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub fn user(mut self, user: &'static str) -> Self {
        self.user = Some(user);
        self
    }

    /// Starts it without warmimg, in a session of its own as a service manager does; it ends when
    /// the result is dropped.
    pub fn start_cold(&self, workspace: &Workspace) -> ColdServer {
        self.start_cold_writing(workspace, Stdio::null())
    }

    /// The same, its standard output going there.
    pub fn start_cold_writing(
        &self,
        workspace: &Workspace,
        output: impl Into<Stdio>,
    ) -> ColdServer {
        let mut command = std::process::Command::new("setsid");
        command
            .args(&self.command)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(workspace.path())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null());
        workspace.mark(&mut command);
        if let Some(name) = self.user {
            let user = nix::unistd::User::from_name(name).unwrap().unwrap();
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        ColdServer(Killed(command.spawn().unwrap()))
    }

    /// The command that captures it.
    pub fn capture(&self, workspace: &Workspace, options: &[&str]) -> std::process::Command {
        self.under("capture", workspace, options)
    }

    /// The command that measures its start-up.
    pub fn bench(&self, workspace: &Workspace, options: &[&str]) -> std::process::Command {
        self.under("bench", workspace, options)
    }

    /// A command of warmimg that is given this server.
    fn under(
        &self,
        command: &str,
        workspace: &Workspace,
        options: &[&str],
    ) -> std::process::Command {
        let mut words = vec![command];
        words.extend(options);
        if let Some(user) = self.user {
            words.extend(["--user", user]);
        }
        words.push("--");
        words.extend(self.command.iter().map(String::as_str));
        let mut command = workspace.warmimg(words);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The round: the cold server's answer, a capture, three restores in the background and one in
    /// the foreground that all give the same answer, and nothing left behind.
    pub fn check(&self, workspace: &Workspace) {
        let cold = self.start_cold(workspace);
        let expected = self.client.ask_until_answered();
        drop(cold);
        self.wait_for_silence();

        let output = super::finish(&mut self.capture(workspace, &["--name", "server"]));
        assert!(
            output.status.success(),
            "capture: {}",
            super::describe(&output)
        );
        assert!(
            self.client.is_refused(),
            "the captured server still listens"
        );

        for round in 1..=3 {
            workspace.run(["restore", "-d", "server"]);
            for _ in 0..3 {
                let answer = self.client.ask();
                assert_eq!(answer.ok(), Some(expected.clone()), "restore {round}");
            }
            workspace.run(["stop", "server-1"]);
            self.wait_for_silence();
        }

        let mut restored = workspace.warmimg(["restore", "server"]);
        restored.stdout(Stdio::null()).stderr(Stdio::null());
        let mut restored = Killed(restored.spawn().unwrap());
        assert_eq!(self.client.ask_until_answered(), expected);
        restored.signal(Signal::SIGTERM);
        restored.wait();
        self.wait_for_silence();
        workspace.assert_clean();
    }

    pub fn wait_for_silence(&self) {
        wait_until("the server to be gone", || match self.client.is_refused() {
            true => Ok(()),
            false => Err("it answers".to_owned()),
        });
        if let Client::HttpOverUnix(path) = &self.client {
            remove(path);
        }
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// A server without warmimg, in a session of its own.
pub struct ColdServer(Killed);

impl ColdServer {
    pub fn pid(&self) -> u32 {
        self.0.0.id()
    }
}

impl Drop for ColdServer {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    }
}
