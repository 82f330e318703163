//! Decides under which user CRIU runs.
//!
//! CRIU reads the resource limits of every process it dumps with prlimit(2), which the kernel
//! allows for processes of other users only with CAP_SYS_RESOURCE. Where root lacks that (in
//! many containers and virtual machines), CRIU can still dump a tree of one user as that user.

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::tree::Member;

/// The capability that CRIU has not when it runs as another user than root: with it, it would
/// become root first. It keeps all others, as it can give the tree only those that it has.
pub const WITHHELD: CapabilitySet = CapabilitySet::SETUID;

/// The user that CRIU runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    Root,
    /// The user that the whole tree runs as.
    Tree {
        uid: u32,
        gid: u32,
    },
}

impl User {
    /// The ids to change to, if any.
    pub fn ids(self) -> Option<(u32, u32)> {
        match self {
            Self::Root => None,
            Self::Tree { uid, gid } => Some((uid, gid)),
        }
    }
}

/// Why no user will do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error(
        "the tree runs under several users ({processes}), and without CAP_SYS_RESOURCE CRIU \
         cannot dump processes of another user than its own"
    )]
    SeveralUsers { processes: String },
    #[error(
        "{process} runs as uid {uid} with CAP_SETUID, and without CAP_SYS_RESOURCE CRIU must not \
         have that"
    )]
    Withheld { process: String, uid: u32 },
}

/// Chooses the user to dump and restore a tree as.
///
/// # Errors
/// See [`UserError`].
pub fn choose_user(members: &[Member], has_sys_resource: bool) -> Result<User, UserError> {
    let ids = |member: &Member| (member.info.uid, member.info.gid);
    if has_sys_resource || members.iter().all(|m| ids(m) == (0, 0) && m.is_one_user()) {
        return Ok(User::Root);
    }
    match members.first() {
        Some(first)
            if first.info.uid != 0
                && members
                    .iter()
                    .all(|m| ids(m) == ids(first) && m.is_one_user()) =>
        {
            let (uid, gid) = ids(first);
            if let Some(member) = members.iter().find(|m| m.capabilities.contains(WITHHELD)) {
                let process = format!("{} {}", member.info.name, member.info.pid);
                return Err(UserError::Withheld { process, uid });
            }
            Ok(User::Tree { uid, gid })
        }
        _ => {
            let name = |m: &Member| format!("{} {} as {}", m.info.name, m.info.pid, describe(m));
            let processes: Vec<String> = members.iter().map(name).collect();
            Err(UserError::SeveralUsers {
                processes: processes.join(", "),
            })
        }
    }
}

/// The user of a process, or all of its ids if they are not of one.
fn describe(member: &Member) -> String {
    if member.is_one_user() {
        return format!("uid {}", member.info.uid);
    }
    let list = |ids: [u32; 4]| ids.map(|id| id.to_string()).join(", ");
    format!(
        "real, effective, saved and file system uid {} and gid {}",
        list(member.uids),
        list(member.gids)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{HostPid, NsPid, ProcessInfo};

    fn member(pid: i32, uid: u32) -> Member {
        Member {
            host: HostPid(pid),
            session: NsPid(pid),
            uids: [uid; 4],
            gids: [uid; 4],
            capabilities: CapabilitySet::empty(),
            info: ProcessInfo {
                pid: NsPid(pid),
                parent: NsPid(1),
                name: "nginx".into(),
                executable: "/usr/sbin/nginx".into(),
                threads: 1,
                uid,
                gid: uid,
                resident_bytes: 0,
            },
        }
    }

    #[test]
    fn root_does_everything_it_may() {
        assert_eq!(
            choose_user(&[member(1, 0), member(2, 33)], true),
            Ok(User::Root)
        );
        assert_eq!(
            choose_user(&[member(1, 0), member(2, 0)], false),
            Ok(User::Root)
        );
    }

    #[test]
    fn without_the_capability_one_user_is_needed() {
        let tree = User::Tree { uid: 33, gid: 33 };
        assert_eq!(
            choose_user(&[member(1, 33), member(2, 33)], false),
            Ok(tree)
        );
        let mut mighty = member(1, 33);
        mighty.capabilities = WITHHELD;
        let error = choose_user(&[mighty], false).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("nginx 1 runs as uid 33 with CAP_SETUID"),
            "{error}"
        );
        let error = choose_user(&[member(1, 0), member(2, 33)], false).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("nginx 1 as uid 0, nginx 2 as uid 33")
        );
        let mut half = member(1, 33);
        half.uids[2] = 0;
        let error = choose_user(&[half], false).unwrap_err().to_string();
        assert!(
            error.contains("saved and file system uid 33, 33, 0, 33 and gid 33, 33, 33, 33"),
            "{error}"
        );
    }
}
