//! The variables and the user that a server would be started with now.

use std::collections::HashMap;

use nix::unistd::User;

use super::{Code, Finding};
use crate::store::Manifest;

/// Variables that tell of a session, or of who starts what, and that servers make nothing of.
const OF_SESSIONS: [&str; 30] = [
    "_",
    "COLORTERM",
    "COLUMNS",
    "DISPLAY",
    "EDITOR",
    "HISTFILE",
    "HISTSIZE",
    "HOME",
    "HUSHLOGIN",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LESS",
    "LESSCLOSE",
    "LESSOPEN",
    "LINES",
    "LOGNAME",
    "LS_COLORS",
    "MAIL",
    "MAINPID",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PAGER",
    "PATH",
    "PS1",
    "PWD",
    "SHELL",
    "SHLVL",
    "STY",
    "USER",
    "WINDOWID",
];

const OF_SESSIONS_BEGIN: [&str; 9] = [
    "DBUS_", "GPG_", "LISTEN_", "SSH_", "SUDO_", "SYSTEMD_", "TERM", "TMUX", "XDG_",
];

/// Those of warmimg itself.
const OWN: &str = "WARMIMG_";

/// Compares variables as `NAME=VALUE`. One that is not set now is taken for one of who captured. Values
/// may be secrets, and are not told.
pub fn compare(then: &[String], now: &[String]) -> Vec<Finding> {
    let now: HashMap<&str, &str> = now.iter().filter_map(|text| text.split_once('=')).collect();
    let then = then.iter().filter_map(|text| text.split_once('='));
    let differs = |&(name, value): &(&str, &str)| {
        !is_of_session(name) && now.get(name).is_some_and(|other| *other != value)
    };
    then.filter(differs)
        .map(|(name, _)| {
            Finding::new(
                Code::Environment,
                name,
                "that of the capture",
                "another value",
            )
        })
        .collect()
}

fn is_of_session(name: &str) -> bool {
    let mut beginnings = OF_SESSIONS_BEGIN.iter().chain([&OWN]);
    OF_SESSIONS.contains(&name) || beginnings.any(|begin| name.starts_with(begin))
}

/// Whether the user that the server was told to run as still has the number that it runs as.
pub fn user(manifest: &Manifest) -> Option<Finding> {
    let name = manifest.command.user.as_deref()?;
    if name.parse::<u32>().is_ok() {
        return None;
    }
    let then = manifest.processes.first()?.uid;
    let found = match User::from_name(name).ok()? {
        Some(user) if user.uid.as_raw() == then => return None,
        Some(user) => format!("uid {}", user.uid),
        None => "no such user".to_owned(),
    };
    Some(Finding::new(Code::User, name, format!("uid {then}"), found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::tests::manifest,
        tree::{NsPid, ProcessInfo},
    };

    #[test]
    fn variables_with_another_value_are_named_without_it() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let then: Vec<String> = texts(&["TZ=UTC", "KEY=secret", "PWD=/a", "SSH_TTY=x", "A=1=2"]);
        let same = compare(&then, &then);
        assert_eq!(same, []);
        let now: Vec<String> = texts(&["TZ=CET", "KEY=elsewhere", "PWD=/b", "SSH_TTY=y", "NEW=1"]);
        let found = compare(&then, &now);
        let about: Vec<&str> = found.iter().map(|finding| finding.about.as_str()).collect();
        assert_eq!(about, ["TZ", "KEY"]);
        let shown = format!("{found:?}");
        assert!(
            !shown.contains("secret") && !shown.contains("elsewhere"),
            "{shown}"
        );
    }

    #[test]
    fn a_user_is_the_one_with_its_number() {
        let mut manifest = manifest(1);
        manifest.processes = vec![ProcessInfo {
            pid: NsPid(300),
            parent: NsPid(1),
            name: "server".into(),
            executable: "/bin/server".into(),
            threads: 1,
            uid: 0,
            gid: 0,
            resident_bytes: 0,
        }];
        for (name, expected) in [
            (None, None),
            (Some("root"), None),
            (Some("1234"), None),
            (Some("nobody-at-all"), Some("no such user")),
        ] {
            manifest.command.user = name.map(str::to_owned);
            let found = user(&manifest).map(|finding| finding.found);
            assert_eq!(found.as_deref(), expected, "{name:?}");
        }
        manifest.command.user = Some("root".into());
        manifest.processes[0].uid = 33;
        let finding = user(&manifest).unwrap();
        assert_eq!(
            (finding.expected, finding.found),
            ("uid 33".into(), "uid 0".into())
        );
    }
}
