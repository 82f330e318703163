//! Checks of the host: what was found, what it means, and the fix.
//!
//! Each check is a function over facts; the facts are read in one place. The last check is the
//! real thing: a small server is captured, restored and asked.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::{
    cgroup::{self, Controller, Places},
    criu::{self, Program, Version},
    host, requirements, watch,
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Good,
    /// Works, with a limitation.
    Limited,
    /// Capture or restore will not work.
    Broken,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub severity: Severity,
    pub found: String,
    /// What follows from it, where it is not good.
    pub meaning: Option<String>,
    pub fix: Option<String>,
}

fn good(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        severity: Severity::Good,
        found: found.into(),
        meaning: None,
        fix: None,
    }
}

fn finding(
    check: &'static str,
    severity: Severity,
    found: impl Into<String>,
    meaning: impl Into<String>,
    fix: impl Into<String>,
) -> Finding {
    let (meaning, fix) = (Some(meaning.into()), Some(fix.into()));
    Finding {
        check,
        severity,
        found: found.into(),
        meaning,
        fix,
    }
}

/// What is known of the host before anything is tried.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: (u32, u32),
    /// Tracepoints that the probe attaches to and that are not there; or why that cannot be
    /// told.
    pub missing_tracepoints: Result<Vec<String>, String>,
    /// The same for profiles.
    pub missing_for_profiles: Result<Vec<String>, String>,
    pub tracefs: Option<PathBuf>,
    pub capabilities: CapabilitySet,
    pub initial_pid_namespace: bool,
    pub criu: Result<(PathBuf, Version), String>,
    pub kerndat_filled: bool,
    /// Where the controllers are that limit instances.
    pub cgroups: Places,
    pub time_namespaces: bool,
}

impl Facts {
    /// Reads the facts.
    pub fn read(criu: Option<&Path>, kerndat: &Path) -> Self {
        let program = Program::find(criu);
        let kerndat_filled = program.as_ref().is_ok_and(|program| {
            criu::kerndat::Kerndat::open(kerndat, program).is_ok_and(|cache| cache.is_filled())
        });
        let version = program.and_then(|p| p.version().map(|version| (p.path, version)));
        let mounted = |path: &str, file: &str| Path::new(path).join(file).exists();
        let tracefs = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .into_iter()
            .find(|path| mounted(path, "events"));
        Self {
            kernel: host::kernel_version(),
            missing_tracepoints: watch::missing_tracepoints(false).map_err(|error| chain(&error)),
            missing_for_profiles: watch::missing_tracepoints(true).map_err(|error| chain(&error)),
            tracefs: tracefs.map(PathBuf::from),
            capabilities: host::capabilities(),
            initial_pid_namespace: host::is_initial_pid_namespace(),
            criu: version.map_err(|error| error.to_string()),
            kerndat_filled,
            cgroups: Places::find().unwrap_or_default(),
            time_namespaces: Path::new("/proc/self/ns/time").exists(),
        }
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Everything that the facts tell.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts), btf(facts), profiles(facts), tracefs(facts)];
    findings.extend(capabilities(facts));
    findings.extend([
        pid_namespace(facts),
        criu_program(facts),
        kerndat(facts),
        cgroups(facts),
        time_namespaces(facts),
    ]);
    findings
}

fn kernel(facts: &Facts) -> Finding {
    /// The first with `bpf_loop`, which the probe uses.
    const OLDEST: (u32, u32) = (5, 17);
    let (major, minor) = facts.kernel;
    let found = format!("Linux {major}.{minor}");
    if facts.kernel >= OLDEST {
        return good("kernel", found);
    }
    finding(
        "kernel",
        Severity::Broken,
        found,
        "the eBPF probe cannot be loaded",
        "use Linux 5.17 or newer",
    )
}

fn btf(facts: &Facts) -> Finding {
    match &facts.missing_tracepoints {
        Ok(missing) if missing.is_empty() => good("BTF", "has all that the probe attaches to"),
        Ok(missing) => finding(
            "BTF",
            Severity::Broken,
            format!("lacks {}", missing.join(", ")),
            "the probe cannot see servers get ready",
            "report this with the kernel's version",
        ),
        Err(reason) => finding(
            "BTF",
            Severity::Broken,
            reason.clone(),
            "the eBPF probe cannot be attached",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of distributions are",
        ),
    }
}

fn profiles(facts: &Facts) -> Finding {
    let found = match &facts.missing_for_profiles {
        Ok(missing) if missing.is_empty() => {
            return good("profiles", "the kernel tells all that they are made of");
        }
        Ok(missing) => format!("lacks {}", missing.join(", ")),
        Err(reason) => reason.clone(),
    };
    finding(
        "profiles",
        Severity::Limited,
        found,
        "`profile` and `capture --profile` do not work",
        "use a newer kernel",
    )
}

fn tracefs(facts: &Facts) -> Finding {
    good(
        "tracefs",
        match &facts.tracefs {
            Some(path) => format!("mounted at {}", path.display()),
            None => "not mounted, and not needed: the probe attaches by BTF".to_owned(),
        },
    )
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = requirements::missing(facts.capabilities)
        .into_iter()
        .map(|missing| {
            finding(
                "capabilities",
                Severity::Broken,
                format!("{} is missing", missing.name),
                format!("it is needed to {}", missing.purpose),
                "run as root; in a container, add it (docker run --cap-add)",
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(good("capabilities", "all that are needed"));
    }
    if !facts.capabilities.contains(CapabilitySet::SYS_RESOURCE) {
        findings.push(finding(
            "CAP_SYS_RESOURCE",
            Severity::Limited,
            "missing",
            "servers whose processes run as several users (a root master with other workers) \
             cannot be captured; those of a single user can",
            "give it to warmimg, or run such servers as one user with capture --user",
        ));
    }
    findings
}

fn pid_namespace(facts: &Facts) -> Finding {
    if facts.initial_pid_namespace {
        return good("pid namespace", "that of the machine");
    }
    finding(
        "pid namespace",
        Severity::Broken,
        "not that of the machine",
        "the eBPF probe sees other pids than this process, and cannot follow a tree",
        "run on the host, or with its pids (docker run --pid=host)",
    )
}

fn criu_program(facts: &Facts) -> Finding {
    const FIX: &str = "`cargo xtask setup` installs one that works, in a folder of its own";
    let needed = criu::required_version(facts.kernel);
    match &facts.criu {
        Ok((path, version)) if *version >= needed => {
            good("CRIU", format!("{version} at {}", path.display()))
        }
        Ok((path, version)) => finding(
            "CRIU",
            Severity::Broken,
            format!("{version} at {}", path.display()),
            format!("too old for this kernel, which needs {needed}"),
            FIX,
        ),
        Err(reason) => finding(
            "CRIU",
            Severity::Broken,
            reason.clone(),
            "nothing can be captured",
            FIX,
        ),
    }
}

fn kerndat(facts: &Facts) -> Finding {
    good(
        "kerndat cache",
        match facts.kerndat_filled {
            true => "filled for this boot and this CRIU",
            false => "empty: filled by the next capture or restore, which takes 40 ms longer",
        },
    )
}

fn cgroups(facts: &Facts) -> Finding {
    const CHECK: &str = "cgroups";
    let found: Vec<_> = [Controller::Cpu, Controller::Memory]
        .into_iter()
        .map(|controller| {
            let place = facts.cgroups.of(controller);
            let version = place.map_or("nowhere", |place| match place.version {
                cgroup::Version::V1 => "version 1",
                cgroup::Version::V2 => "version 2",
            });
            format!("{}: {version}", controller.name())
        })
        .collect();
    let found = found.join(", ");
    if facts.cgroups.cpu.is_some() && facts.cgroups.memory.is_some() {
        return good(CHECK, found);
    }
    finding(
        CHECK,
        Severity::Limited,
        found,
        "restored servers cannot be limited by what is nowhere; all else works",
        cgroup::NO_CONTROLLER_FIX,
    )
}

fn time_namespaces(facts: &Facts) -> Finding {
    if facts.time_namespaces {
        return good(
            "time namespaces",
            "there; restored clocks go on where they stopped",
        );
    }
    finding(
        "time namespaces",
        Severity::Broken,
        "the kernel has none",
        "the monotonic clock of a restored server could jump back",
        "use a kernel built with CONFIG_TIME_NS=y",
    )
}

/// The finding of the self-test, from its outcome: how long the restore took, or why it failed.
pub fn self_test(outcome: Result<std::time::Duration, (String, Vec<String>)>) -> Finding {
    const CHECK: &str = "self-test";
    match outcome {
        Ok(time) => {
            let ms = time.as_secs_f64() * 1000.0;
            good(
                CHECK,
                format!("a server was captured, restored in {ms:.1} ms, and answered"),
            )
        }
        Err((reason, details)) => Finding {
            check: CHECK,
            severity: Severity::Broken,
            found: [vec![reason], details].concat().join("\n"),
            meaning: Some("capture and restore do not work here".into()),
            fix: Some("mend what is listed above; if nothing is, report this".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let place = cgroup::Place {
            version: cgroup::Version::V2,
            path: "/sys/fs/cgroup".into(),
        };
        Facts {
            kernel: (6, 18),
            missing_tracepoints: Ok(vec![]),
            missing_for_profiles: Ok(vec![]),
            tracefs: None,
            capabilities: CapabilitySet::all(),
            initial_pid_namespace: true,
            criu: Ok(("/usr/sbin/criu".into(), Version(4, 2, 1))),
            kerndat_filled: true,
            cgroups: Places {
                cpu: Some(place.clone()),
                memory: Some(place),
            },
            time_namespaces: true,
        }
    }

    fn worst(facts: &Facts) -> Vec<(&'static str, Severity)> {
        examine(facts)
            .into_iter()
            .filter(|finding| finding.severity != Severity::Good)
            .inspect(|finding| assert!(finding.meaning.is_some() && finding.fix.is_some()))
            .map(|finding| (finding.check, finding.severity))
            .collect()
    }

    #[test]
    fn a_fit_host_has_only_good_findings() {
        assert_eq!(worst(&facts()), []);
    }

    #[test]
    fn each_lack_is_found() {
        let base = facts();
        let all = CapabilitySet::all();
        let cases = [
            (
                Facts {
                    kernel: (5, 10),
                    ..base.clone()
                },
                "kernel",
            ),
            (
                Facts {
                    missing_tracepoints: Ok(vec!["f".into()]),
                    ..base.clone()
                },
                "BTF",
            ),
            (
                Facts {
                    missing_tracepoints: Err("no".into()),
                    ..base.clone()
                },
                "BTF",
            ),
            (
                Facts {
                    capabilities: all - CapabilitySet::BPF,
                    ..base.clone()
                },
                "capabilities",
            ),
            (
                Facts {
                    initial_pid_namespace: false,
                    ..base.clone()
                },
                "pid namespace",
            ),
            (
                Facts {
                    criu: Err("missing".into()),
                    ..base.clone()
                },
                "CRIU",
            ),
            (
                Facts {
                    criu: Ok(("/c".into(), Version(4, 1, 1))),
                    ..base.clone()
                },
                "CRIU",
            ),
            (
                Facts {
                    time_namespaces: false,
                    ..base.clone()
                },
                "time namespaces",
            ),
        ];
        for (facts, check) in cases {
            assert_eq!(worst(&facts), [(check, Severity::Broken)]);
        }
    }

    #[test]
    fn without_sys_resource_the_limitation_is_told() {
        let capabilities = CapabilitySet::all() - CapabilitySet::SYS_RESOURCE;
        let limited = Facts {
            capabilities,
            ..facts()
        };
        assert_eq!(worst(&limited), [("CAP_SYS_RESOURCE", Severity::Limited)]);
    }

    #[test]
    fn without_a_controller_the_limitation_is_told() {
        let mut limited = facts();
        limited.cgroups.memory = None;
        assert_eq!(worst(&limited), [("cgroups", Severity::Limited)]);
        assert_eq!(cgroups(&limited).found, "cpu: version 2, memory: nowhere");
    }
}
