//! What to try after a failure, and the lines to show with it.

use std::{collections::BTreeSet, io};

use super::{
    Error,
    encryption::{MEMORY, encryption_hint, key_option},
    is_disk_full,
    serve::{admin_hint, config_hint, gateway_hint},
};
use crate::{
    archive::{ArchiveError, Refusal},
    bench::{BenchError, RunError, gate::GateError, results::ResultsError},
    capture::CaptureError,
    cgroup::{self, CgroupError},
    criu::{CriuError, ProgramError, UserError},
    edit::EditError,
    fit::{Code, Finding},
    freeze::FreezeError,
    hook::HookError,
    instance::InstanceError,
    obstacle::{self, Obstacle, Obstacles},
    proxy::ProxyError,
    requirements::RequirementError,
    restore::RestoreError,
    spawn::{CommandError, SpawnError},
    store::{Damage, StoreError},
    warmup::WarmupError,
    watch::WatchError,
};

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Command(error) => command_hint(error)?,
            Self::Requirement(RequirementError::Capabilities(_)) => {
                "run as root; in a container, add the capabilities (docker run --cap-add …). \
                 `warmimg doctor` checks them all"
                    .into()
            }
            Self::Requirement(RequirementError::PidNamespace) => {
                "run on the host, or in a container with the host's pids (docker run --pid=host)"
                    .into()
            }
            Self::Program(error) => program_hint(error),
            Self::Proxy(ProxyError::NoControl(_)) => {
                "this is a part of `warmimg serve`, which starts it".into()
            }
            Self::Store(error) | Self::Restore(RestoreError::Store(error)) => store_hint(error)?,
            Self::Archive(error) => archive_hint(error)?,
            Self::Encryption(error) => encryption_hint(error)?,
            Self::MemoryFull(_) => MEMORY.into(),
            Self::NotEncrypted(_) => "`capture --encrypt-to RECIPIENT` makes one that is".into(),
            Self::WouldBePlain(_) => {
                "say what the new one is to be encrypted to: --encrypt-to RECIPIENT, or \
                 --passphrase-file FILE"
                    .into()
            }
            Self::NoRecipe(_) => {
                "an image of `capture` tells, one of `checkpoint` or of an earlier version does not: \
                 capture it anew"
                    .into()
            }
            Self::Unnamed(_) => "another image has its name by now: name that one".into(),
            Self::CapturedAlready(_) => "wait until it is made".into(),
            Self::RehearsalEncrypted => "capture it --at warm, which rehearses it as well".into(),
            Self::InUse { by, .. } if by.is_empty() => "try again in a moment".into(),
            Self::InUse { by, .. } => format!("end it first: warmimg stop {}", by.join(" ")),
            Self::Terminal | Self::JsonWithArchive => {
                "name a file with -o FILE, or send it on: warmimg export | …".into()
            }
            Self::Instance(error) => instance_hint(error)?,
            Self::Config(error) => config_hint(error).into(),
            Self::Gateway(error) => gateway_hint(error)?,
            Self::Admin(error) => admin_hint(error)?,
            Self::NoProfile { source, .. } => source.hint()?.into(),
            Self::Capture(error) => capture_hint(error)?,
            Self::Restore(RestoreError::PortTaken { .. }) => {
                "stop that process (`warmimg ps` lists instances, `warmimg stop` ends them), or \
                 bring this one up elsewhere with --publish NEW:OLD"
                    .into()
            }
            Self::Restore(RestoreError::HookCommand(error)) => command_hint(error)?,
            Self::Restore(RestoreError::SharedHook(_)) => {
                "a command, or a signal, reaches its own copy; so does a request where each copy has \
                 a network of its own (--net private)"
                    .into()
            }
            Self::Restore(RestoreError::Hook(error)) => hook_hint(error)?.into(),
            Self::Restore(RestoreError::ConnectionTaken { .. }) => {
                "a connection can go on only once at a time: stop that copy (`warmimg ps` lists \
                 instances), or capture with --tcp-close"
                    .into()
            }
            Self::Restore(RestoreError::Unmappable(_)) => {
                "copy it: --memory copy, or auto, which does so where it must".into()
            }
            Self::Restore(RestoreError::ConnectionElsewhere { .. }) => {
                "restore it in the host's network, or capture with --tcp-close".into()
            }
            Self::Restore(RestoreError::ConnectionLost { .. }) => {
                "capture again with the other end running, or with --tcp-close".into()
            }
            Self::Restore(RestoreError::Instance(InstanceError::Write { .. })) => SPACE.into(),
            Self::Restore(RestoreError::Twice(_)) => {
                "a listener is in one place; copies of the image can have others".into()
            }
            Self::Restore(RestoreError::Locked { .. }) => {
                "stop that process: copies that need the same lock cannot run at the same time"
                    .into()
            }
            Self::Restore(
                RestoreError::Clash { .. }
                | RestoreError::NoSocket { .. }
                | RestoreError::NoAddress(_)
                | RestoreError::NoFolder(_),
            ) => {
                "choose another place with --publish NEW:OLD".into()
            }
            Self::Restore(RestoreError::NoListener { listeners, .. }) => {
                let listeners: Vec<_> = listeners.iter().map(ToString::to_string).collect();
                format!("the image listens on: {}", listeners.join(", "))
            }
            Self::Restore(RestoreError::Program(error)) => program_hint(error),
            Self::Restore(RestoreError::Unfit { findings, image }) => {
                finding_hint(findings, image, "what does not fit")
            }
            Self::Restore(RestoreError::Stale { findings, image }) => {
                finding_hint(findings, image, "what may be stale")
            }
            Self::Restore(RestoreError::Criu(error)) => criu_hint(error)?,
            Self::Restore(RestoreError::OutOfMemory(_)) => {
                "give it more with --memory-limit; `warmimg inspect` tells the memory of the image".into()
            }
            Self::Cgroup(error) | Self::Restore(RestoreError::Cgroup(error)) => cgroup_hint(error)?,
            Self::NothingNamed => "`warmimg ps` lists the instances".into(),
            Self::Bench(error) => bench_hint(error)?,
            Self::Compare(BenchError::Run { source, .. })
                if matches!(
                    **source,
                    RunError::NoAnswer { .. } | RunError::Status { .. } | RunError::Ask { .. }
                ) =>
            {
                "name what to ask with --warmup, as --warmup /login,status=302, or, for a protocol \
                 other than HTTP, --warmup 'tcp://127.0.0.1:6379,send=PING\\r\\n'"
                    .into()
            }
            Self::Compare(error) => bench_hint(error)?,
            Self::Results(ResultsError::Newer { .. }) => "use the warmimg that wrote it".into(),
            Self::Results(_) => "`warmimg bench --export-json FILE` writes such a file".into(),
            Self::Gate(GateError::NothingInCommon { .. }) => {
                "measure at the same capture points (--at) as the stored results".into()
            }
            Self::Import { .. } => "give it a file that `export` or `profile --output` has written".into(),
            Self::Export { .. } => "the folder must be there, and be writable".into(),
            Self::Overwrite(_) => "export to another file, and replace it if all is well".into(),
            Self::Meaningless { .. } => {
                "--send is for tcp:// and unix:, --status for http:// and unix:".into()
            }
            Self::Gate(GateError::OtherSettings { .. }) => {
                "measure as the stored results were, or store new ones".into()
            }
            Self::Escape(_) => r"known are \r, \n, \t, \0, \\ and \xHH".into(),
            Self::RehearsalElsewhere(_) => "give the path alone: --warmup /PATH".into(),
            Self::RehearsalConnected => "capture it with --tcp-close".into(),
            Self::WarmupWithoutPoint => "add --at warm, or leave --warmup out".into(),
            Self::EstablishedAgain(_) => "use --tcp-close".into(),
            Self::Supervisor(id) => format!("name the instance itself: --pid {id}"),
            Self::CountOnOnePort => {
                "let them share it with --reuse-port, or give each a network with --net private"
                    .into()
            }
            Self::Restore(RestoreError::Network(_)) => {
                "the kernel needs virtual interfaces (CONFIG_VETH), and warmimg CAP_NET_ADMIN; \
                 `warmimg ps` lists the instances that have a network"
                    .into()
            }
            Self::AutoOnce("--profile") => {
                "name a point with --at, or profile the start-up by itself: warmimg profile".into()
            }
            Self::AutoOnce("--check") => "check the point that matters, as --at ready".into(),
            Self::AutoOnce(_) => "restore the image when it is made".into(),
            Self::HookWithoutPoint => {
                "at every other point the tree stands still before the server can be told anything"
                    .into()
            }
            Self::NothingToAsk => "name what to ask with --url".into(),
            _ => return None,
        })
    }

    /// Lines to show with the error, each list with its title: what the server or CRIU wrote.
    pub fn details(&self) -> Vec<(&'static str, Vec<String>)> {
        const OUTPUT: &str = "Last lines of its output";
        let lists = match self {
            Self::Capture(CaptureError::ExitedEarly { output, .. })
            | Self::Bench(BenchError::Run { output, .. })
            | Self::Compare(BenchError::Run { output, .. })
            | Self::Capture(CaptureError::Hook(
                HookError::Failed { output, .. } | HookError::Timeout { output, .. },
            ))
            | Self::Restore(RestoreError::Hook(
                HookError::Failed { output, .. } | HookError::Timeout { output, .. },
            )) => vec![(OUTPUT, output.clone())],
            Self::Capture(CaptureError::Timeout(missed)) => vec![
                ("What it does now", missed.blocked_on.clone()),
                (OUTPUT, missed.output.clone()),
            ],
            Self::Capture(
                CaptureError::Busy { connections, .. } | CaptureError::Connected { connections },
            ) => {
                let connections = connections.iter().map(ToString::to_string);
                vec![("Its connections", connections.collect())]
            }
            Self::Restore(
                RestoreError::Unfit { findings, .. } | RestoreError::Stale { findings, .. },
            ) => vec![("What it means", meanings(findings))],
            Self::Capture(CaptureError::Obstacles(obstacles)) => {
                vec![("What stands in the way", explained(obstacles))]
            }
            Self::Capture(CaptureError::Criu(CriuError::Failed { lines, .. }))
            | Self::Restore(RestoreError::Criu(CriuError::Failed { lines, .. })) => {
                vec![("Last lines of CRIU's log", lines.clone())]
            }
            _ => vec![],
        };
        let is_worth = |(_, lines): &(&str, Vec<String>)| !lines.is_empty();
        lists.into_iter().filter(is_worth).collect()
    }
}

/// What each obstacle is and means, and what to do about it.
fn explained(Obstacles(found): &Obstacles) -> Vec<String> {
    let explain = |obstacle: &Obstacle| {
        let code = obstacle.code;
        let made = obstacle.origin();
        let made = made.map_or_else(String::new, |origin| format!(" (made {origin})"));
        [
            format!("{code}: {obstacle}{made}"),
            format!("    so: {}", code.meaning()),
            format!("    fix: {}", code.fix()),
        ]
    };
    found.iter().flat_map(explain).collect()
}

/// What each kind of finding means.
fn meanings(findings: &[Finding]) -> Vec<String> {
    let codes: BTreeSet<Code> = findings.iter().map(|finding| finding.code).collect();
    let codes = codes.into_iter();
    codes
        .map(|code| format!("{code}: {}", code.meaning()))
        .collect()
}

/// How to go on in spite of findings, if that is possible.
fn finding_hint(findings: &[Finding], image: &str, what: &str) -> String {
    let codes: BTreeSet<Code> = findings.iter().map(|finding| finding.code).collect();
    let verify = format!("`warmimg verify {image}` tells {what}");
    if let Some(code) = codes.iter().find(|code| !code.can_be_allowed()) {
        return format!(
            "{verify}; nothing helps against {code} but to capture again, or to undo it"
        );
    }
    let codes: Vec<&str> = codes.into_iter().map(Code::name).collect();
    let codes = codes.join(",");
    format!("{verify}; capture again, or restore it all the same with --allow {codes}")
}

fn command_hint(error: &CommandError) -> Option<String> {
    Some(match error {
        CommandError::NotFound(_) => {
            "check the spelling and PATH, or give the program's full path".into()
        }
        CommandError::NotExecutable(path) => {
            format!(
                "make it executable (chmod +x {}), or name its interpreter",
                path.display()
            )
        }
        CommandError::NoSuchUser(_) => "`getent passwd` lists the users".into(),
        _ => return None,
    })
}

fn program_hint(error: &ProgramError) -> String {
    match error {
        ProgramError::NotThere(_) => "correct --criu or WARMIMG_CRIU".into(),
        _ => "`cargo xtask setup` installs a CRIU that works on this kernel; another one can be \
              named with --criu or WARMIMG_CRIU"
            .into(),
    }
}

const SPACE: &str = "free some space, or choose another store with --store or WARMIMG_STORE";

pub(super) fn store_hint(error: &StoreError) -> Option<String> {
    Some(match error {
        StoreError::Unknown { .. } | StoreError::Ambiguous { .. } => {
            "`warmimg images` lists the images with their names and digests".into()
        }
        StoreError::Empty(_) => "make one with `warmimg capture -- COMMAND`".into(),
        StoreError::Unnamed(_) => "capture it again, with --name".into(),
        StoreError::Edit(_) => "`warmimg verify` tells whether the image is damaged".into(),
        StoreError::BadName { .. } => {
            "names are letters, digits, '.', '_' and '-', beginning with a letter or digit, at \
             most 64 long"
                .into()
        }
        StoreError::Write { source, .. } | StoreError::Open { source, .. }
            if source.kind() == io::ErrorKind::StorageFull =>
        {
            SPACE.into()
        }
        StoreError::Open { .. } | StoreError::Write { .. } => {
            "choose another store with --store or WARMIMG_STORE".into()
        }
        StoreError::Read { .. } | StoreError::BadManifest { .. } => {
            "if it cannot be mended, remove the image and capture it again".into()
        }
        StoreError::OtherSchema { .. } => "capture it again with this version".into(),
        StoreError::Damaged { image, damage, .. } => match damage {
            Damage::Changed | Damage::Invalid { .. } => format!(
                "`warmimg verify {image}` tells whether its content is still what was captured: if so, \
                 it can be restored again; if not, capture it again"
            ),
            _ => format!(
                "capture it again; `warmimg verify {image}` tells all that is wrong with it"
            ),
        },
        StoreError::Closed { image, key, .. } => {
            format!("open it first: warmimg open {image} {}", key_option(*key))
        }
        StoreError::Memory { .. } => {
            "an encrypted image is made and opened in a tmpfs that warmimg mounts: run as root"
                .into()
        }
        StoreError::Arriving(_) => "wait for it, or end it".into(),
        StoreError::Unfit { .. } | StoreError::Foreign { .. } => return None,
    })
}

pub(super) fn archive_hint(error: &ArchiveError) -> Option<String> {
    Some(match error {
        ArchiveError::Store(error) => store_hint(error)?,
        ArchiveError::Damaged { image, .. } => {
            format!("`warmimg verify {image}` tells all that is wrong with it")
        }
        ArchiveError::CutShort { is_kept: true, .. } => {
            "what has arrived was kept: import all of it with --resume; the next `warmimg prune` \
             would remove it"
                .into()
        }
        ArchiveError::CutShort { .. } => {
            "nothing was stored; get the rest of it, or export the image again".into()
        }
        ArchiveError::NameTaken { .. } => "give it a name with --name".into(),
        ArchiveError::Refused {
            refusal: Refusal::TooLarge { .. },
            ..
        } => "allow more with --max-size, if it is from whom you trust".into(),
        ArchiveError::NoArchive { .. }
        | ArchiveError::Refused { .. }
        | ArchiveError::Unfit { .. } => {
            "nothing was stored; `warmimg export` writes archives: export the image again, and \
             compare the files"
                .into()
        }
        ArchiveError::Write(source) if source.kind() == io::ErrorKind::StorageFull => SPACE.into(),
        ArchiveError::Write(_) | ArchiveError::Read { .. } | ArchiveError::Interrupted => {
            return None;
        }
    })
}

fn instance_hint(error: &InstanceError) -> Option<String> {
    Some(match error {
        InstanceError::Unknown { running, .. } if running.is_empty() => {
            "there is no instance; `warmimg restore -d` starts one".into()
        }
        InstanceError::Unknown { running, .. } => format!("there are: {}", running.join(", ")),
        InstanceError::Ended { id } => {
            format!("`warmimg stop {id}` removes what is left; `warmimg restore -d` starts another")
        }
        InstanceError::NoLog { .. } => "`warmimg restore -d` keeps a log".into(),
        _ => return None,
    })
}

fn cgroup_hint(error: &CgroupError) -> Option<String> {
    Some(match error {
        CgroupError::NoController(_) => cgroup::NO_CONTROLLER_FIX.into(),
        CgroupError::NoParent(_) => "make it, or leave --cgroup without a group".into(),
        CgroupError::Create { .. } => {
            "this needs root and a writable hierarchy; a container has one of its host with \
             --privileged"
                .into()
        }
        CgroupError::Enable { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::ResourceBusy | io::ErrorKind::Unsupported
            ) =>
        {
            "a group with processes of its own can have none with controllers below; name \
             another with --cgroup=GROUP"
                .into()
        }
        CgroupError::Write { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
            "the groups above it may have a lower limit".into()
        }
        CgroupError::InUse { used, .. } => {
            format!("nothing was changed; allow more than {used}, or let the server use less first")
        }
        _ => return None,
    })
}

fn capture_hint(error: &CaptureError) -> Option<String> {
    Some(match error {
        CaptureError::Program(error) => program_hint(error),
        CaptureError::Store(error) => store_hint(error)?,
        CaptureError::Criu(error) => criu_hint(error)?,
        CaptureError::Exec { .. } => {
            "it needs to be a program for this machine, or a script whose first line names its \
             interpreter"
                .into()
        }
        CaptureError::ExitedEarly { .. } => {
            "start it without warmimg to see whether it runs; one that goes to the background \
             must leave a process that listens"
                .into()
        }
        CaptureError::Timeout(missed) => match (&missed.wanted, &missed.listens[..]) {
            (_, []) => {
                "give it longer with --timeout, or choose an earlier point with --at listen".into()
            }
            (Some(wanted), listens) if !listens.iter().any(|listener| wanted.is(listener)) => {
                let listens: Vec<_> = listens.iter().map(ToString::to_string).collect();
                let listens = listens.join(", ");
                format!("name another with --listener: it listens on {listens}")
            }
            _ => "it listens; give it longer with --timeout, or choose another point with \
                          --at: not every server forks, or waits for connections in a way that is \
                          seen"
                .into(),
        },
        CaptureError::Warmup(WarmupError::Status { found, .. }) => {
            format!("ask for a path that is there, or expect it with --warmup …,status={found}")
        }
        CaptureError::Warmup(_) => {
            "check what is asked with --warmup; give it longer with --timeout".into()
        }
        CaptureError::Hook(error) => hook_hint(error)?.into(),
        CaptureError::Busy { .. } => {
            "a server that keeps connections open for the next request may have to be told to \
             close them sooner; name another path with --warmup"
                .into()
        }
        CaptureError::Connected { .. } => {
            "if the server connects again by itself when it finds them closed, as pools do, \
             --tcp-close restores them so; --before-freeze can tell it to close them, and \
             --tcp-established keeps those by TCP for a single restore"
                .into()
        }
        CaptureError::User(UserError::SeveralUsers { .. }) => {
            "run the server under one user (--user, and a port from 1024 on), or give warmimg \
             CAP_SYS_RESOURCE"
                .into()
        }
        CaptureError::User(UserError::Withheld { .. }) => {
            "run the server without it (capsh --drop=cap_setuid), or give warmimg CAP_SYS_RESOURCE"
                .into()
        }
        CaptureError::Freeze(FreezeError::SeveralRoots { .. }) => {
            "start one server per capture, in the foreground".into()
        }
        CaptureError::NoProcess(_) => {
            "`warmimg ps` lists the instances; a pid is one of this host".into()
        }
        CaptureError::Unreadable { .. } => {
            "neither a kernel thread nor the init of the machine can be captured".into()
        }
        CaptureError::Own { .. } => "name the server itself, or run warmimg from elsewhere".into(),
        CaptureError::Terminal { .. } => {
            "start it with its input and output elsewhere: COMMAND </dev/null >FILE 2>&1 &".into()
        }
        CaptureError::Spawn(SpawnError::Container { .. }) => "run warmimg in that container".into(),
        CaptureError::Edit(EditError::Write { source, .. })
            if source.kind() == io::ErrorKind::StorageFull =>
        {
            SPACE.into()
        }
        CaptureError::Edit(EditError::Write { .. }) => {
            "choose another store with --store or WARMIMG_STORE".into()
        }
        CaptureError::Edit(EditError::NotInListen) => {
            "choose --at listen: with io_uring, and on other processors than x86-64, an image \
             cannot be rewound"
                .into()
        }
        CaptureError::Freeze(FreezeError::InVfork { .. }) => {
            "what a child in vfork does cannot be captured: let the server use fork, or \
             execute the program first; or choose another point with --at"
                .into()
        }
        CaptureError::Obstacles(Obstacles(found)) => match &found[..] {
            [one] => one.code.fix().into(),
            _ => "`warmimg capture --check` tells whether they are gone, and stores nothing".into(),
        },
        CaptureError::Watch(WatchError::NoBtf(_)) => {
            "a kernel built with CONFIG_DEBUG_INFO_BTF is needed".into()
        }
        CaptureError::Watch(_) | CaptureError::Spawn(SpawnError::Namespaces(_)) => {
            "`warmimg doctor` tells what this host lacks".into()
        }
        _ => return None,
    })
}

fn hook_hint(error: &HookError) -> Option<&'static str> {
    Some(match error {
        HookError::Timeout { .. } | HookError::NoAnswer { .. } => {
            "give it longer with --hook-timeout"
        }
        HookError::Status { .. } | HookError::Ask { .. } | HookError::NoListener { .. } => {
            "check what is asked by get: or post:"
        }
        HookError::Start { .. } | HookError::Failed { .. } => {
            "it runs on the host, without a shell, with WARMIMG_PID, WARMIMG_NAME, \
             WARMIMG_LISTENERS and the variables of --env in its environment"
        }
        HookError::Variable { .. } => {
            "a header holds one line: give it to a command, or encode it (base64)"
        }
        HookError::NoRoot { .. } => return None,
    })
}

fn bench_hint(error: &BenchError) -> Option<String> {
    Some(match error {
        BenchError::Cgroup(_) => "a kernel with control groups of version 2 is needed".into(),
        BenchError::Run { source, .. } => match &**source {
            RunError::Taken { .. } => {
                "stop what answers there, or let the server listen elsewhere".into()
            }
            RunError::Ended { .. } => {
                "start it by hand to see whether it runs; a command must find its port and files \
                 free again each time"
                    .into()
            }
            RunError::NoAnswer { .. } => {
                "check what is asked with --url; give it longer with --timeout; for a protocol \
                 other than HTTP, use --url tcp://HOST:PORT and --send"
                    .into()
            }
            RunError::Status { found, .. } => format!(
                "ask for a path that is there with --url, or expect it with --status {found}"
            ),
            RunError::Ask { .. } => {
                "for a protocol other than HTTP, use --url tcp://HOST:PORT and --send".into()
            }
            RunError::DropCaches(_) => "this needs root and a writable /proc/sys".into(),
            _ => return None,
        },
        BenchError::Host(_) | BenchError::Interrupted => return None,
    })
}

fn criu_hint(error: &CriuError) -> Option<String> {
    match error {
        error if is_disk_full(error) => Some(SPACE.into()),
        CriuError::Failed { lines, log, .. } if !obstacle::in_log(lines).is_empty() => {
            let found = obstacle::in_log(lines);
            let code = found[0].code;
            let (meaning, fix) = (code.meaning(), code.fix());
            let log = log.display();
            Some(format!("{code}: {meaning}; {fix}; the whole log is {log}"))
        }
        CriuError::Failed { log, .. } => Some(format!(
            "the whole log is {}; `warmimg doctor` tests CRIU on this host",
            log.display()
        )),
        _ => None,
    }
}
