//! The command as it will be executed: everything looked up before the fork.

use std::{
    env,
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, User};

use super::{init, protocol::Step};
use crate::{files, sys};

/// Variables that keep a server's start-up within what CRIU can dump. They are set only where
/// the caller did not, and they change neither what is served nor how the kernel is used for it:
/// CRIU dumps neither io_uring instances nor MPTCP sockets.
pub const COMPATIBLE_ENVIRONMENT: [(&str, &str); 2] =
    [("UV_USE_IO_URING", "0"), ("GODEBUG", "multipathtcp=0")];

/// Why a command cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("command not found: {}", .0.display())]
    NotFound(OsString),
    #[error("not executable: {}", .0.display())]
    NotExecutable(PathBuf),
    #[error("no such user: {0}")]
    NoSuchUser(String),
    #[error("cannot look up user {0}")]
    UserLookup(String, #[source] io::Error),
    #[error("an argument or environment variable contains a NUL byte")]
    Nul,
    #[error("cannot read the working directory")]
    WorkingDirectory(#[source] io::Error),
}

/// A program with its arguments, environment, working directory and user.
#[derive(Clone, Debug)]
pub struct Command {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// As an absolute path.
    pub working_directory: PathBuf,
    /// The user to run as, if not the caller.
    pub user: Option<RunAs>,
}

/// A user to run as.
#[derive(Clone, Debug)]
pub struct RunAs {
    pub name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Command {
    /// Looks up the program in `PATH` and the user in the system's databases.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn resolve(words: &[OsString], user: Option<&str>) -> Result<Self, CommandError> {
        let first = words
            .first()
            .ok_or_else(|| CommandError::NotFound(OsString::new()))?;
        let folder = env::current_dir().map_err(CommandError::WorkingDirectory)?;
        let program = find_program(first, env::var_os("PATH").as_deref(), &folder)?;
        let user = user.map(RunAs::look_up).transpose()?;
        Ok(Self {
            program: c_string(program.as_os_str())?,
            arguments: words
                .iter()
                .map(|word| c_string(word))
                .collect::<Result<_, _>>()?,
            environment: environment(env::vars_os(), user.as_ref())?,
            working_directory: folder,
            user: user.map(|(run_as, _)| run_as),
        })
    }

    /// The command that an image was captured from, to be started anew.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn again(
        words: &[String],
        environment: &[String],
        working_directory: &Path,
        user: Option<&str>,
    ) -> Result<Self, CommandError> {
        let first = words.first().map(String::as_str).unwrap_or_default();
        let path = environment
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="));
        let path = path.map(OsString::from);
        let program = find_program(OsStr::new(first), path.as_deref(), working_directory)?;
        let strings = |texts: &[String]| -> Result<Vec<CString>, CommandError> {
            texts.iter().map(|text| c_string(text.as_ref())).collect()
        };
        Ok(Self {
            program: c_string(program.as_os_str())?,
            arguments: strings(words)?,
            environment: strings(environment)?,
            working_directory: working_directory.to_path_buf(),
            user: user
                .map(RunAs::look_up)
                .transpose()?
                .map(|(run_as, _)| run_as),
        })
    }

    /// Another command, in the same environment, folder, and as the same user.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn with_words(&self, words: &[&str]) -> Result<Self, CommandError> {
        let first = words.first().copied().unwrap_or_default();
        let program = find_program(OsStr::new(first), None, &self.working_directory)?;
        let words = words.iter().map(|word| c_string(word.as_ref()));
        Ok(Self {
            program: c_string(program.as_os_str())?,
            arguments: words.collect::<Result<_, _>>()?,
            ..self.clone()
        })
    }

    /// The same without these variables in its environment.
    #[must_use]
    pub fn without(mut self, names: &[&str]) -> Self {
        let is_kept = |entry: &CString| {
            let name = entry.to_bytes().split(|&byte| byte == b'=').next();
            !names.iter().any(|of| name == Some(of.as_bytes()))
        };
        self.environment.retain(is_kept);
        self
    }

    /// Executes the command in the place of this process. Returns only if that fails, with the step
    /// that did.
    pub fn replace_this(&self) -> (Step, io::Error) {
        if let Some(user) = &self.user
            && let Err(errno) = user.become_it()
        {
            return (Step::Credentials, errno.into());
        }
        self.exec()
    }

    /// Executes the program as if its caller had. Returns only if that fails.
    fn exec(&self) -> (Step, io::Error) {
        files::lower();
        sys::reset_signals();
        (
            Step::Exec,
            sys::exec(&self.program, &self.arguments, &self.environment),
        )
    }

    /// The arguments, the program's name first, for people to read.
    pub fn words(&self) -> Vec<String> {
        self.arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    /// The environment, for the manifest.
    pub fn environment(&self) -> Vec<String> {
        self.environment
            .iter()
            .map(|entry| entry.to_string_lossy().into_owned())
            .collect()
    }

    /// In a forked child of init: waits for the word on `go`, then executes the program. Returns
    /// only if that fails, with the step that did.
    pub(super) fn become_it(&self, go: &OwnedFd) -> (Step, io::Error) {
        let mut word = [0];
        match nix::unistd::read(go, &mut word) {
            Ok(1) => {}
            // Init is gone; so will this process be.
            _ => sys::exit_now(127),
        }
        self.execute(init::STDOUT, init::STDERR, None)
    }

    /// In a forked child: executes the program, with these as its standard output and error.
    /// Returns only if that fails, with the step that did.
    pub(super) fn execute(
        &self,
        stdout: RawFd,
        stderr: RawFd,
        death_signal: Option<rustix::process::Signal>,
    ) -> (Step, io::Error) {
        // A session of its own: CRIU needs the session's leader within the tree.
        let _ = nix::unistd::setsid();
        for (from, to) in [(stdout, 1), (stderr, 2)] {
            if let Err(error) = sys::place(from, to) {
                return (Step::Exec, error);
            }
        }
        if let Some(user) = &self.user
            && let Err(errno) = user.become_it()
        {
            return (Step::Credentials, errno.into());
        }
        // Here, as a change of the user resets it.
        let _ = rustix::process::set_parent_process_death_signal(death_signal);
        if let Err(error) = env::set_current_dir(&self.working_directory) {
            return (Step::WorkingDirectory, error);
        }
        self.exec()
    }
}

impl RunAs {
    /// Finds a user by name or number; returns the home folder as well.
    fn look_up(name: &str) -> Result<(Self, PathBuf), CommandError> {
        let by_name = User::from_name(name);
        let found = match (by_name, name.parse()) {
            (Ok(None), Ok(uid)) => User::from_uid(Uid::from_raw(uid)),
            (found, _) => found,
        };
        let user = found
            .map_err(|errno| CommandError::UserLookup(name.to_owned(), errno.into()))?
            .ok_or_else(|| CommandError::NoSuchUser(name.to_owned()))?;
        let c_name = c_string(OsStr::new(&user.name))?;
        let groups = nix::unistd::getgrouplist(&c_name, user.gid)
            .map_err(|errno| CommandError::UserLookup(name.to_owned(), errno.into()))?;
        Ok((
            Self {
                name: user.name,
                uid: user.uid,
                gid: user.gid,
                groups,
            },
            user.dir,
        ))
    }

    fn become_it(&self) -> nix::Result<()> {
        nix::unistd::setgroups(&self.groups)?;
        nix::unistd::setresgid(self.gid, self.gid, self.gid)?;
        nix::unistd::setresuid(self.uid, self.uid, self.uid)
    }
}

fn c_string(text: &OsStr) -> Result<CString, CommandError> {
    CString::new(text.as_bytes()).map_err(|_| CommandError::Nul)
}

/// The caller's environment, with what `user` and CRIU need.
fn environment(
    caller: impl Iterator<Item = (OsString, OsString)>,
    user: Option<&(RunAs, PathBuf)>,
) -> Result<Vec<CString>, CommandError> {
    let mut variables: Vec<(OsString, OsString)> = caller.collect();
    let mut set = |name: &str, value: &OsStr, always: bool| match variables
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some(known) if always => known.1 = value.to_owned(),
        Some(_) => {}
        None => variables.push((name.into(), value.to_owned())),
    };
    for (name, value) in COMPATIBLE_ENVIRONMENT {
        set(name, value.as_ref(), false);
    }
    if let Some((user, home)) = user {
        set("USER", user.name.as_ref(), true);
        set("LOGNAME", user.name.as_ref(), true);
        set("HOME", home.as_os_str(), true);
    }
    variables
        .into_iter()
        .map(|(name, value)| {
            let mut entry = name;
            entry.push("=");
            entry.push(value);
            c_string(&entry)
        })
        .collect()
}

/// Finds a program as execvp(3) would with this `PATH` in this folder.
fn find_program(
    name: &OsStr,
    path: Option<&OsStr>,
    folder: &Path,
) -> Result<PathBuf, CommandError> {
    let usable = |path: &Path| {
        path.metadata()
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if name.as_bytes().contains(&b'/') {
        let found = folder.join(name);
        return match found.metadata() {
            Ok(_) if usable(&found) => Ok(std::path::absolute(&found).unwrap_or(found)),
            Ok(_) => Err(CommandError::NotExecutable(name.into())),
            Err(_) => Err(CommandError::NotFound(name.to_owned())),
        };
    }
    let path = path.unwrap_or(OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin"));
    env::split_paths(path)
        .map(|place| folder.join(place).join(name))
        .find(|candidate| usable(candidate))
        .and_then(|found| std::path::absolute(found).ok())
        .ok_or_else(|| CommandError::NotFound(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_like_execvp_does() {
        let find = |name: &str, path: Option<&str>, folder: &str| {
            find_program(OsStr::new(name), path.map(OsStr::new), Path::new(folder))
        };
        assert!(find("sh", None, "/").unwrap().is_absolute());
        assert_eq!(find("sh", Some("bin"), "/").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("./sh", None, "/bin").unwrap(), Path::new("/bin/sh"));
        for (name, path) in [("no-such-program-here", None), ("sh", Some("/etc"))] {
            let found = find(name, path, "/");
            assert!(matches!(found, Err(CommandError::NotFound(_))), "{found:?}");
        }
        let found = find("/etc/passwd", None, "/");
        assert!(matches!(found, Err(CommandError::NotExecutable(_))));
    }

    #[test]
    fn what_the_caller_set_wins() {
        let caller = [("UV_USE_IO_URING", "1"), ("HOME", "/root")];
        let caller = caller.into_iter().map(|(n, v)| (n.into(), v.into()));
        let variables = environment(caller, None).unwrap();
        assert!(variables.contains(&c"UV_USE_IO_URING=1".to_owned()));
        assert!(variables.contains(&c"GODEBUG=multipathtcp=0".to_owned()));
    }
}
