//! What cannot be captured is told of, all of it and with what to do; what can be, is captured.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{Workspace, ask::Client, expect, free_port, server::Server, servers};

/// Kinds of tests/servers/obstacles/server.c, and the obstacle that each is.
const OBSTACLES: [(&str, &str); 27] = [
    ("io_uring", "io-uring"),
    ("userfault", "userfaultfd"),
    ("perf", "perf-event"),
    ("bpf_program", "bpf"),
    ("pidfd_init", "foreign-pidfd"),
    ("memfd_secret", "secret-memory"),
    ("landlock", "landlock-ruleset"),
    ("fs_context", "unknown-file"),
    ("queue", "message-queue"),
    ("tun", "device"),
    ("fuse", "device"),
    ("loop_control", "device"),
    ("mptcp", "mptcp"),
    ("vsock", "socket-family"),
    ("xdp", "socket-family"),
    // Only CRIU sees it.
    ("udp_corked", "socket-data"),
    ("netlink_data", "socket-data"),
    ("user_namespace", "namespace"),
    ("mount_namespace", "namespace"),
    ("child_user", "namespace"),
    ("child_net", "namespace"),
    ("child_mount", "namespace"),
    ("child_pid", "namespace"),
    ("child_time", "namespace"),
    ("traced", "traced"),
    ("seccomp_listener", "seccomp-listener"),
    ("sysv", "shared-memory"),
];

/// Kinds that look like obstacles, and are none.
const HARMLESS: [&str; 20] = [
    "aio",
    "pidfd_self",
    "pidfd_child",
    "pidfd_dead",
    "memfd",
    "fanotify",
    "inotify_deleted",
    "landlocked",
    "kmsg",
    "ptmx",
    "proc_dead",
    "packet",
    "raw",
    "netlink_groups",
    "seccomp",
    "seccomp_mmap",
    "lock_all",
    "in_deleted_folder",
    "dispatch",
    "unix_passing",
];

fn server(program: &str, kind: &str) -> Server {
    let port = free_port();
    Server::new(Client::Http(port), [program, kind, &port.to_string()])
}

/// What `capture --check` says of a server.
fn check(workspace: &Workspace, server: &Server, code: i32) -> Value {
    let (line, _) = expect(code, &mut server.capture(workspace, &["--check", "--json"]));
    serde_json::from_str(&line).unwrap()
}

fn codes(checked: &Value) -> Vec<&str> {
    let obstacles = checked["obstacles"].as_array().unwrap().iter();
    obstacles
        .map(|obstacle| obstacle["code"].as_str().unwrap())
        .collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_check_finds_each_obstacle_and_stores_nothing() {
    let workspace = Workspace::new();
    let program = servers::compile(&workspace, "obstacles/server.c");
    for (kind, code) in OBSTACLES {
        let checked = check(&workspace, &server(&program, kind), 111);
        assert_eq!(checked["ok"], false);
        assert!(
            codes(&checked).iter().all(|found| *found == code),
            "{kind}: {checked}"
        );
        for obstacle in checked["obstacles"].as_array().unwrap() {
            assert!(!obstacle["fix"].as_str().unwrap().is_empty());
            assert!(!obstacle["meaning"].as_str().unwrap().is_empty());
        }
    }
    for folder in ["images", "names", "logs"] {
        assert!(is_empty(&workspace.store().join(folder)), "{folder}");
    }
    workspace.assert_clean();
}

#[test]
fn what_is_no_obstacle_is_captured_and_restored() {
    let workspace = Workspace::new();
    let program = servers::compile(&workspace, "obstacles/server.c");
    for kind in HARMLESS {
        let server = server(&program, kind);
        let checked = check(&workspace, &server, 0);
        assert_eq!(
            (&checked["ok"], codes(&checked).len()),
            (&Value::Bool(true), 0)
        );
        expect(0, &mut server.capture(&workspace, &["--name", "harmless"]));
        workspace.run(["restore", "-d", "harmless"]);
        assert_eq!(server.client.ask().unwrap(), "200 ok", "{kind}");
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

#[test]
fn all_obstacles_are_told_of_at_once() {
    let workspace = Workspace::new();
    let program = servers::compile(&workspace, "obstacles/server.c");
    let several = server(&program, "several");
    let checked = check(&workspace, &several, 111);
    let mut found = codes(&checked);
    found.sort_unstable();
    assert_eq!(found, ["io-uring", "mptcp", "userfaultfd"]);
    let ring = checked["obstacles"].as_array().unwrap().iter();
    let ring = ring
        .clone()
        .find(|obstacle| obstacle["code"] == "io-uring")
        .unwrap();
    assert_eq!(ring["call"], "io_uring_setup");
    // Within the start-up of so small a server, give or take the tick of the clock.
    assert!(
        ring["at_us"].as_u64().is_some_and(|us| us < 30_000_000),
        "{ring}"
    );
    let (text, _) = expect(111, &mut several.capture(&workspace, &["--check"]));
    assert!(text.contains("at ready: 3 obstacles."), "{text}");
    assert!(text.contains("fix:  let it use plain TCP"), "{text}");
    let (_, error) = expect(111, &mut several.capture(&workspace, &[]));
    assert!(
        error.contains("3 things stand in the way of an image"),
        "{error}"
    );
    for code in ["io-uring: ", "mptcp: ", "userfaultfd: "] {
        assert!(error.contains(code), "{error}");
    }
    let (_, error) = expect(
        111,
        &mut server(&program, "udp_corked").capture(&workspace, &[]),
    );
    assert!(error.contains("Hint: socket-data: "), "{error}");
    workspace.assert_clean();
}

#[test]
fn a_check_has_no_image() {
    let workspace = Workspace::new();
    let error = workspace.fail(2, ["capture", "--check", "--name", "x", "--", "true"]);
    assert!(error.contains("cannot be used with"), "{error}");
    let error = workspace.fail(2, ["capture", "--check", "--at", "auto", "--", "true"]);
    assert!(
        error.contains("Hint: check the point that matters"),
        "{error}"
    );
    workspace.assert_clean();
}
