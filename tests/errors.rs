//! Each way to fail: its exit code, what it says, and that nothing is left behind.

use std::{
    fs,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Killed, Workspace, describe, finish, free_port, servers, wait_until};

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn the_command_is_not_found() {
    let workspace = Workspace::new();
    let error = workspace.fail(101, ["capture", "--", "no-such-server"]);
    assert_eq!(
        error,
        "Error: command not found: no-such-server\n\
         Hint: check the spelling and PATH, or give the program's full path\n"
    );
    let script = workspace.write("not-executable", "#!/bin/sh\n");
    let error = workspace.fail(101, ["capture", "--", &script]);
    assert!(
        error.contains("not executable") && error.contains("chmod +x"),
        "{error}"
    );
    // Executable, but nothing that the kernel can execute.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::write(&script, "no program\n").unwrap();
    fs::set_permissions(&script, open).unwrap();
    let error = workspace.fail(101, ["capture", "--", &script]);
    assert!(
        error.contains("cannot execute") && error.contains("Exec format error"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn the_user_is_unknown() {
    let workspace = Workspace::new();
    let error = workspace.fail(2, ["capture", "--user", "nobody-here", "--", "true"]);
    assert!(error.contains("no such user: nobody-here"), "{error}");
    workspace.assert_clean();
}

#[test]
fn the_command_ends_before_it_listens() {
    let workspace = Workspace::new();
    let script = "for i in $(seq 30); do echo line $i; done; echo broken >&2; exit 3";
    let error = workspace.fail(102, ["capture", "--", "sh", "-c", script]);
    assert!(
        error.starts_with("Error: sh ended before it waited for a connection: exit status 3\n")
    );
    // The last 20 lines, of both streams.
    assert!(
        error.contains("    line 30\n") && error.contains("    broken\n"),
        "{error}"
    );
    assert_eq!(
        error
            .lines()
            .filter(|line| line.starts_with("    "))
            .count(),
        20,
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn the_command_never_listens() {
    let workspace = Workspace::new();
    let script = "echo waiting for the database >&2; exec sleep 1000";
    let error = workspace.fail(103, ["capture", "--timeout", "1", "--", "sh", "-c", script]);
    assert!(
        error.starts_with("Error: sh has not waited for a connection within 1 s\n"),
        "{error}"
    );
    assert!(error.contains("waiting in clock_nanosleep()"), "{error}");
    assert!(
        error.contains("its output:\n    waiting for the database\n"),
        "{error}"
    );
    assert!(
        error.contains("Hint: give it longer with --timeout"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn a_server_that_listens_but_never_waits_times_out() {
    let workspace = Workspace::new();
    let script =
        "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\ntime.sleep(1000)";
    let error = workspace.fail(
        103,
        ["capture", "--timeout", "2", "--", PYTHON, "-c", script],
    );
    assert!(
        error.contains("What it does now:\n    python3 (pid"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn an_interrupt_ends_a_capture_cleanly() {
    let workspace = Workspace::new();
    let mut command = workspace.warmimg(["capture", "--", "sleep", "1000"]);
    let mut capture = Killed(command.stderr(Stdio::piped()).spawn().unwrap());
    wait_until("the command to run", || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", capture.0.id()));
        let init = children.unwrap_or_default().trim().to_owned();
        let grandchild = fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
        let pid = grandchild.unwrap_or_default().trim().to_owned();
        match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) if name == "sleep\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    capture.signal(Signal::SIGINT);
    assert_eq!(capture.wait(), Some(130));
    workspace.assert_clean();
}

#[test]
fn a_missing_capability_is_named() {
    let workspace = Workspace::new();
    let output = finish(&mut workspace.without("sys_ptrace", ["capture", "--", "true"]));
    assert_eq!(output.status.code(), Some(104), "{}", describe(&output));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("missing CAP_SYS_PTRACE (to let CRIU stop"),
        "{error}"
    );
    let output = finish(&mut workspace.without("sys_ptrace", ["doctor"]));
    assert_eq!(output.status.code(), Some(113), "{}", describe(&output));
    workspace.assert_clean();
}

#[test]
fn a_tree_of_several_users_is_refused_without_the_capability() {
    let workspace = Workspace::new();
    let script = workspace.write(
        "users.py",
        "import os, socket, time\ns = socket.create_server(('127.0.0.1', 0))\n\
         if os.fork() == 0:\n    os.setgid(65534)\n    os.setuid(65534)\n    s.accept()\n\
         time.sleep(1000)\n",
    );
    let arguments = ["capture", "--", PYTHON, &script];
    let output = finish(&mut workspace.without("sys_resource", arguments));
    assert_eq!(output.status.code(), Some(111), "{}", describe(&output));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("as uid 0") && error.contains("as uid 65534"),
        "{error}"
    );
    assert!(
        error.contains("Hint: run the server under one user (--user"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn several_process_trees_are_refused() {
    let workspace = Workspace::new();
    let script = "sleep 1000 & sleep 1000 & exec 3>&-; (exec python3 -c \"
import socket
socket.create_server(('127.0.0.1', 0)).accept()\") & exit 0";
    let error = workspace.fail(111, ["capture", "--", "sh", "-c", script]);
    assert!(error.contains("several process trees: "), "{error}");
    workspace.assert_clean();
}

#[test]
fn criu_is_missing_or_too_old() {
    let workspace = Workspace::new();
    let error = workspace.fail(105, ["--criu", "/no/such/criu", "capture", "--", "true"]);
    assert!(error.contains("no CRIU at /no/such/criu"), "{error}");
    // An older release is told by its version, before anything is started with it.
    let old = workspace.write("criu", "#!/bin/sh\necho 'Version: 3.17.1'\n");
    fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = workspace.fail(105, ["--criu", &old, "capture", "--", "true"]);
    assert!(
        error.contains("CRIU 3.17.1") && error.contains("is too old for Linux"),
        "{error}"
    );
    assert!(
        error.contains("Hint: `cargo xtask setup` installs a CRIU that works"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn criu_fails_to_dump() {
    let workspace = Workspace::new();
    // A corked socket of UDP, of which only CRIU sees that it holds data.
    let script = "import socket\nm = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                  m.setsockopt(17, 1, 1)\nm.sendto(b'x', ('127.0.0.1', 9))\n\
                  s = socket.create_server(('127.0.0.1', 0))\ns.accept()";
    let arguments = ["capture", "--at", "ready", "--", PYTHON, "-c", script];
    let output = finish(&mut workspace.warmimg(arguments));
    assert_eq!(output.status.code(), Some(111), "{}", describe(&output));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("Error: CRIU failed to dump: "), "{error}");
    assert!(error.contains("Last lines of CRIU's log:\n    "), "{error}");
    let log = error.split("the whole log is ").nth(1).unwrap();
    let log = fs::read_to_string(log.trim_end()).unwrap();
    assert!(log.contains("Can't dump corked dgram socket"), "{log}");
    workspace.assert_clean();
}

#[test]
fn the_image_is_unknown() {
    let workspace = Workspace::new();
    let error = workspace.fail(107, ["restore", "nothing"]);
    assert!(error.contains("no image is called \"nothing\""), "{error}");
    assert!(
        error.contains("Hint: `warmimg images` lists the images"),
        "{error}"
    );
    let error = workspace.fail(107, ["restore"]);
    assert!(error.contains("there is no image yet"), "{error}");
    let error = workspace.fail(112, ["stop", "nothing-1"]);
    assert!(
        error.contains("no instance is called \"nothing-1\""),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn the_image_cannot_be_read() {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port());
    let output = finish(&mut server.capture(&workspace, &["--name", "plain"]));
    assert!(output.status.success(), "{}", describe(&output));
    let images = workspace.store().join("images");
    let image = fs::read_dir(&images)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    // CRIU's own images gone: its folder, then its files.
    let criu = image.join("criu");
    fs::rename(&criu, image.join("gone")).unwrap();
    for _ in 0..2 {
        let error = workspace.fail(108, ["restore", "plain"]);
        assert!(
            error.contains("images/") && error.contains(" is missing\nHint: capture it again"),
            "{error}"
        );
        let _ = fs::create_dir(&criu);
    }
    // What only CRIU can tell, of an image that is not sealed: one byte is another.
    fs::remove_dir(&criu).unwrap();
    fs::rename(image.join("gone"), &criu).unwrap();
    fs::remove_file(image.join("seal.json")).unwrap();
    let inventory = criu.join("inventory.img");
    let mut bytes = fs::read(&inventory).unwrap();
    bytes[0] ^= 1;
    fs::write(&inventory, bytes).unwrap();
    let error = workspace.fail(106, ["restore", "plain"]);
    assert!(error.contains("CRIU failed to restore"), "{error}");
    // A manifest that knows of no files.
    let manifest = image.join("manifest.json");
    let mut empty: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    empty["files"] = Value::Array(vec![]);
    fs::write(&manifest, empty.to_string()).unwrap();
    fs::remove_dir_all(&criu).unwrap();
    let error = workspace.fail(108, ["restore", "plain"]);
    assert!(error.contains("cannot open the image's folder"), "{error}");
    fs::write(image.join("manifest.json"), "{").unwrap();
    let error = workspace.fail(108, ["restore", "plain"]);
    assert!(error.contains("is not valid"), "{error}");
    fs::remove_file(image.join("manifest.json")).unwrap();
    fs::create_dir(image.join("manifest.json")).unwrap();
    let error = workspace.fail(108, ["restore", "plain"]);
    assert!(
        error.contains("cannot read") && error.contains("manifest.json"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn the_store_cannot_be_used() {
    let workspace = Workspace::new();
    let file = workspace.write("file", "");
    let error = workspace.fail(108, ["--store", &file, "images"]);
    assert!(error.contains("cannot use the store") && error.contains("Hint: choose another"));
}

#[test]
fn the_port_is_taken() {
    let workspace = Workspace::new();
    let port = free_port();
    let server = servers::plain("accept", port);
    let output = finish(&mut server.capture(&workspace, &["--name", "plain"]));
    assert!(output.status.success(), "{}", describe(&output));
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let error = workspace.fail(109, ["restore", "plain"]);
    assert!(
        error.contains(&format!(
            "Error: tcp:127.0.0.1:{port} is taken by python3 (pid "
        )),
        "{error}"
    );
    drop(cold);
    workspace.assert_clean();
}

#[test]
fn a_live_unix_socket_is_not_taken_over() {
    let workspace = Workspace::new();
    let server = servers::uvicorn_on_a_unix_socket(&workspace);
    let output = finish(&mut server.capture(&workspace, &["--name", "unix"]));
    assert!(output.status.success(), "{}", describe(&output));
    workspace.run(["restore", "-d", "unix"]);
    let error = workspace.fail(109, ["restore", "-d", "unix"]);
    assert!(error.contains("server.sock is taken by"), "{error}");
    server.client.ask_until_answered();
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn the_disk_is_full() {
    let workspace = Workspace::new();
    let capture = servers::plain("accept", free_port()).capture(&workspace, &["--name", "plain"]);
    fs::create_dir(workspace.store()).unwrap();
    // In a mount namespace of its own, so that nothing is left mounted whatever happens.
    let script = "mount -t tmpfs -o size=2m tmpfs \"$WARMIMG_STORE\" && shift 0\n\
                  \"$@\"; code=$?; find \"$WARMIMG_STORE/images\" \"$WARMIMG_STORE/names\" \
                  \"$WARMIMG_STORE/staging\" -mindepth 1 >&2; exit $code";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--", "sh", "-c", script, "sh"])
        .arg(capture.get_program())
        .args(capture.get_args())
        .current_dir(workspace.path())
        .env("WARMIMG_STORE", workspace.store());
    workspace.mark(&mut command);
    let output = finish(&mut command);
    assert_eq!(output.status.code(), Some(110), "{}", describe(&output));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("Hint: free some space"), "{error}");
    // Nothing half-written: the hint is the last line, `find` has found nothing.
    assert!(
        error.lines().last().unwrap().starts_with("Hint:"),
        "{error}"
    );
    workspace.assert_clean();
}

#[test]
fn errors_are_json_too() {
    let workspace = Workspace::new();
    let error = workspace.fail(107, ["--json", "restore", "nothing"]);
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(
        (&error["type"], &error["exit_code"]),
        (&"error".into(), &107.into())
    );
    assert!(error["hint"].as_str().unwrap().contains("warmimg images"));
}
