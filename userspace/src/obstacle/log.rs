//! What CRIU says of obstacles in its log.

use std::collections::BTreeSet;

use super::{Code, Obstacle};

/// Parts of its messages, and what they are about; the first that fits a line counts. The texts are
/// those of criu/files-ext.c, files.c, pidfd.c, proc_parse.c, sk-inet.c, sk-netlink.c, sockets.c,
/// namespaces.c, cr-dump.c, tun.c, sysctl.c and of compel/src/lib/ptrace.c, infect.c.
const KNOWN: [(&str, Code); 36] = [
    ("Connected TCP socket", Code::EstablishedConnection),
    ("In-flight connection", Code::EstablishedConnection),
    ("External socket is used", Code::EstablishedConnection),
    (
        "Can't dump half of stream unix connection",
        Code::EstablishedConnection,
    ),
    ("anon_inode:[io_uring]", Code::IoUring),
    // The kernel refuses to send a ring through a socket.
    ("send_fds failed (-22)", Code::IoUring),
    ("Unsupported proto 262", Code::Mptcp),
    ("Unsupported proto", Code::SocketFamily),
    ("Unknown socket collected", Code::SocketFamily),
    ("Unsupported socket family", Code::SocketFamily),
    ("The socket has data to read", Code::SocketData),
    ("Can't dump corked dgram socket", Code::SocketData),
    ("Net namespace is required to dump tun link", Code::Device),
    ("anon_inode:[userfaultfd]", Code::Userfaultfd),
    ("anon_inode:[perf_event]", Code::PerfEvent),
    ("anon_inode:bpf", Code::Bpf),
    ("anon_inode:seccomp notify", Code::SeccompListener),
    ("anon_inode:[landlock-ruleset]", Code::LandlockRuleset),
    ("suspending seccomp failed", Code::SeccompFilter),
    ("is not a part of process tree", Code::ForeignPidfd),
    ("(/secretmem (deleted))", Code::SecretMemory),
    ("doesn't live in IPC ns", Code::SharedMemory),
    ("Can't dump nested ", Code::Namespace),
    (
        "doesn't belong to the target user namespace",
        Code::Namespace,
    ),
    ("Can't restore sub-task in NS", Code::Namespace),
    ("Unable to convert uid or gid", Code::Namespace),
    ("iptables-save -V failed", Code::Namespace),
    ("ip6tables-save -V failed", Code::Namespace),
    ("Unseizable non-zombie", Code::Traced),
    ("Can't dump ghost file", Code::DeletedTooBig),
    ("Can't create link remap", Code::DeletedLinked),
    ("is outside of its pid namespace", Code::ForeignSession),
    (" (chr ", Code::Device),
    (" (unknown /dev/", Code::Device),
    ("Can't dump file", Code::UnknownFile),
    (
        "Zombies with threads are not supported",
        Code::MainThreadEnded,
    ),
];

/// What the errors in a log are about, each once.
pub fn in_log(lines: &[String]) -> Vec<Obstacle> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in lines {
        let Some((_, message)) = line.split_once("Error (") else {
            continue;
        };
        let known = KNOWN.iter().find(|(text, _)| message.contains(text));
        let Some((_, code)) = known else { continue };
        if seen.insert(*code) {
            let said = message.split_once("): ").map_or(message, |(_, said)| said);
            found.push(Obstacle {
                code: *code,
                process: None,
                what: format!("CRIU says: {said}"),
                at_us: None,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of CRIU 4.2.1, as it wrote them of servers that have such a thing.
    const SAID: [(&str, Code); 24] = [
        (
            "pie: 300: Error (criu/pie/parasite.c:588): send_fds failed (-22)",
            Code::IoUring,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:[userfaultfd])",
            Code::Userfaultfd,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:[perf_event])",
            Code::PerfEvent,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:bpf-map)",
            Code::Bpf,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:bpf-prog)",
            Code::Bpf,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:[landlock-ruleset])",
            Code::LandlockRuleset,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:seccomp notify)",
            Code::SeccompListener,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon anon_inode:[fscontext])",
            Code::UnknownFile,
        ),
        (
            "(00.1) Error (criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr 10:229)",
            Code::Device,
        ),
        (
            "(00.1) Error (criu/tun.c:306): tun: Net namespace is required to dump tun link",
            Code::Device,
        ),
        (
            "(00.1) Error (criu/pidfd.c:97): pidfd: pidfd pid 1 is not a part of process tree..",
            Code::ForeignPidfd,
        ),
        (
            "(00.1) Error (criu/proc_parse.c:502): Unknown shit 100600 (/secretmem (deleted))",
            Code::SecretMemory,
        ),
        (
            "(00.1) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket b3b388",
            Code::Mptcp,
        ),
        (
            "(00.1) Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)",
            Code::SocketFamily,
        ),
        (
            "(00.1) Error (criu/sk-inet.c:504): inet: Can't dump corked dgram socket b3bcd2",
            Code::SocketData,
        ),
        (
            "(00.1) Error (criu/sk-netlink.c:77): netlink: The socket has data to read",
            Code::SocketData,
        ),
        (
            "(00.1) Error (criu/namespaces.c:931): Unable to convert uid or gid",
            Code::Namespace,
        ),
        (
            "(00.1) Error (criu/namespaces.c:460): Can't dump nested ipc namespace for 301",
            Code::Namespace,
        ),
        (
            "(00.1) Error (criu/util.c:1723): iptables-save -V failed",
            Code::Namespace,
        ),
        (
            "(00.1) Error (criu/pstree.c:969): Can't restore sub-task in NS (cflags 40000000)",
            Code::Namespace,
        ),
        (
            "(00.1) Error (criu/cr-dump.c:478): Task 300 with SysVIPC shmem map @7f489132d000 doesn't live in IPC ns",
            Code::SharedMemory,
        ),
        (
            "(00.1) Error (compel/src/lib/ptrace.c:27): suspending seccomp failed: Operation not permitted",
            Code::SeccompFilter,
        ),
        (
            "(00.1) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/big of 68157440 size, increase limit",
            Code::DeletedTooBig,
        ),
        (
            "(00.1) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.",
            Code::EstablishedConnection,
        ),
    ];

    #[test]
    fn what_criu_says_is_known() {
        for (line, code) in SAID {
            let found = in_log(&[line.to_owned()]);
            assert_eq!(found.len(), 1, "{line}");
            assert_eq!(found[0].code, code, "{line}");
        }
    }

    #[test]
    fn each_is_told_of_once_and_what_is_no_error_is_not() {
        let lines = [
            "(00.1) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket b3b388",
            "(00.1) Error (criu/sk-inet.c:139): inet: Unsupported proto 262 for socket b3b389",
            "(00.1) Error (criu/cr-dump.c:1545): Dump files (pid: 300) failed with -1",
            "(00.1) Warn  (criu/tun.c:306): tun: Net namespace is required to dump tun link",
            "(00.1) Error (criu/cr-dump.c:1975): Dumping FAILED.",
        ];
        let found = in_log(&lines.map(str::to_owned));
        assert_eq!(found.len(), 1);
        let said = "CRIU says: inet: Unsupported proto 262 for socket b3b388";
        assert_eq!(found[0].what, said);
    }
}
