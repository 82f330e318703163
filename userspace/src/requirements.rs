//! The capabilities that warmimg needs, and what does not work without each.

use rustix::thread::CapabilitySet;

/// A capability that is needed.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    pub capability: CapabilitySet,
    /// As capabilities(7) writes it.
    pub name: &'static str,
    pub purpose: &'static str,
}

/// What root has on an ordinary host, as far as it is used.
pub const REQUIRED: [Requirement; 10] = [
    need(
        CapabilitySet::SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "make namespaces and mount a private /proc",
    ),
    need(CapabilitySet::BPF, "CAP_BPF", "load the eBPF probe"),
    need(
        CapabilitySet::PERFMON,
        "CAP_PERFMON",
        "attach the eBPF probe",
    ),
    need(
        CapabilitySet::SYS_PTRACE,
        "CAP_SYS_PTRACE",
        "let CRIU stop and read the processes",
    ),
    need(
        CapabilitySet::CHECKPOINT_RESTORE,
        "CAP_CHECKPOINT_RESTORE",
        "choose the pids of a restored tree",
    ),
    need(
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        "let CRIU read and restore sockets",
    ),
    need(
        CapabilitySet::SYS_CHROOT,
        "CAP_SYS_CHROOT",
        "let CRIU restore the root folder",
    ),
    need(
        CapabilitySet::SETPCAP,
        "CAP_SETPCAP",
        "let CRIU restore capabilities",
    ),
    need(
        CapabilitySet::SETUID,
        "CAP_SETUID",
        "restore the user of each process",
    ),
    need(
        CapabilitySet::DAC_OVERRIDE,
        "CAP_DAC_OVERRIDE",
        "open the files of every process",
    ),
];

const fn need(capability: CapabilitySet, name: &'static str, purpose: &'static str) -> Requirement {
    Requirement {
        capability,
        name,
        purpose,
    }
}

/// Why warmimg cannot work under these conditions.
#[derive(Debug, thiserror::Error)]
pub enum RequirementError {
    #[error("missing {}", list(.0))]
    Capabilities(Vec<Requirement>),
    #[error("this is not the pid namespace of the machine, whose pids the eBPF probe sees")]
    PidNamespace,
}

fn list(missing: &[Requirement]) -> String {
    let line = |r: &Requirement| format!("{} (to {})", r.name, r.purpose);
    missing.iter().map(line).collect::<Vec<_>>().join(", ")
}

/// The required capabilities that are not in `have`.
pub fn missing(have: CapabilitySet) -> Vec<Requirement> {
    REQUIRED
        .into_iter()
        .filter(|required| !have.contains(required.capability))
        .collect()
}

/// Checks what can be known before anything is started.
///
/// # Errors
/// See [`RequirementError`].
pub fn check(have: CapabilitySet, initial_pid_namespace: bool) -> Result<(), RequirementError> {
    match missing(have) {
        missing if !missing.is_empty() => Err(RequirementError::Capabilities(missing)),
        _ if !initial_pid_namespace => Err(RequirementError::PidNamespace),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_purpose() {
        let all = CapabilitySet::all();
        assert!(check(all, true).is_ok());
        assert!(matches!(
            check(all, false),
            Err(RequirementError::PidNamespace)
        ));
        let error = check(all - CapabilitySet::SYS_PTRACE, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "missing CAP_SYS_PTRACE (to let CRIU stop and read the processes)"
        );
    }
}
