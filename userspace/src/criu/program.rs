//! Finds CRIU and tells whether it is recent enough for the running kernel.

use std::{
    env,
    ffi::CString,
    fmt, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

/// Where `cargo xtask setup` puts a CRIU of its own if the distribution's does not work here.
pub const PRIVATE_PREFIX: &str = "/usr/local/lib/warmimg/criu";

/// Why there is no CRIU to use.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("CRIU is not installed: there is no {PRIVATE_PREFIX}/usr/sbin/criu and none in PATH")]
    Missing,
    #[error("no CRIU at {}", .0.display())]
    NotThere(PathBuf),
    #[error("cannot run {}", .path.display())]
    Run { path: PathBuf, source: io::Error },
    #[error("{} does not tell its version: {output}", .path.display())]
    NoVersion { path: PathBuf, output: String },
    #[error(
        "CRIU {found} ({}) is too old for Linux {}.{}, which needs {needed}",
        .path.display(), .kernel.0, .kernel.1
    )]
    TooOld {
        path: PathBuf,
        found: Version,
        needed: Version,
        kernel: (u32, u32),
    },
}

/// A version of CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.2 {
            0 => write!(f, "{}.{}", self.0, self.1),
            sublevel => write!(f, "{}.{}.{sublevel}", self.0, self.1),
        }
    }
}

/// An installed CRIU.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
}

impl Program {
    /// Finds CRIU: the one asked for, else that of set-up, else the one in `PATH`.
    ///
    /// # Errors
    /// [`ProgramError::Missing`] or [`ProgramError::NotThere`].
    pub fn find(wanted: Option<&Path>) -> Result<Self, ProgramError> {
        if let Some(path) = wanted {
            let path = path.to_path_buf();
            return match is_program(&path) {
                true => Ok(Self { path }),
                false => Err(ProgramError::NotThere(path)),
            };
        }
        let private = Path::new(PRIVATE_PREFIX).join("usr/sbin/criu");
        let in_path = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        std::iter::once(private)
            .chain(
                env::split_paths(&in_path)
                    .chain(system)
                    .map(|folder| folder.join("criu")),
            )
            .find(|path| is_program(path))
            .map(|path| Self { path })
            .ok_or(ProgramError::Missing)
    }

    /// The path for exec.
    pub fn c_path(&self) -> CString {
        CString::new(self.path.as_os_str().as_bytes())
            .expect("a path that the file system knows holds no NUL")
    }

    /// Asks for the version.
    ///
    /// # Errors
    /// [`ProgramError::Run`] or [`ProgramError::NoVersion`].
    pub fn version(&self) -> Result<Version, ProgramError> {
        let path = self.path.clone();
        let output = Command::new(&self.path)
            .arg("--version")
            .output()
            .map_err(|source| ProgramError::Run {
                path: path.clone(),
                source,
            })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse_version(&text).ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            ProgramError::NoVersion {
                path,
                output: (text + &errors).trim().to_owned(),
            }
        })
    }

    /// Asks for the version and compares it with what a kernel needs.
    ///
    /// # Errors
    /// As [`Program::version`], and [`ProgramError::TooOld`].
    pub fn check(&self, kernel: (u32, u32)) -> Result<Version, ProgramError> {
        let (found, needed) = (self.version()?, required_version(kernel));
        if found < needed {
            return Err(ProgramError::TooOld {
                path: self.path.clone(),
                found,
                needed,
                kernel,
            });
        }
        Ok(found)
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The oldest CRIU that works on a kernel: Linux 6.13 changed the layout of the vDSO, 6.16 the
/// options of sockets; before those, 4.0 is the first with everything used here.
pub fn required_version(kernel: (u32, u32)) -> Version {
    match kernel {
        kernel if kernel >= (6, 16) => Version(4, 2, 0),
        kernel if kernel >= (6, 13) => Version(4, 1, 0),
        _ => Version(4, 0, 0),
    }
}

fn parse_version(output: &str) -> Option<Version> {
    let text = output
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?
        .trim();
    let mut numbers = text
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    Some(Version(
        numbers.next()?,
        numbers.next()?,
        numbers.next().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(parse_version("Version: 4.2.1\n"), Some(Version(4, 2, 1)));
        assert_eq!(
            parse_version("Version: 3.17\nGitID: v3.17\n"),
            Some(Version(3, 17, 0))
        );
        assert_eq!(parse_version("criu"), None);
        assert!(Version(4, 1, 1) < required_version((6, 18)));
        assert!(Version(4, 1, 1) >= required_version((6, 14)));
        assert_eq!(Version(4, 2, 0).to_string(), "4.2");
    }
}
