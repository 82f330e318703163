//! What is secret in a store is its owner's alone, and `inspect` tells of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::support::{Workspace, ask::Client, expect, free_port, server::Server};

/// A server that reads a key, keeps another open, and has OpenSSL and random numbers.
const SERVER: &str = "
import http.server, random, ssl, sys
open('tls.pem').read()
held = open('held.key')
random.random()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '2')
        self.end_headers()
        self.wfile.write(b'ok')
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n";

fn server(workspace: &Workspace) -> Server {
    workspace.write("tls.pem", KEY);
    workspace.write("held.key", KEY);
    let program = workspace.write("server.py", SERVER);
    let port = free_port();
    let words = ["/usr/bin/python3", &program, &port.to_string()].map(str::to_owned);
    Server::new(Client::Http(port), words)
        .environment("SHOP_TOKEN", "hunter2")
        .environment("DATABASE_URL", "postgres://shop:hunter3@db/shop")
}

/// All below a folder that others than its owner could read, write or enter.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![folder.to_path_buf()];
    while let Some(path) = next.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            next.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        if !metadata.is_symlink() && metadata.permissions().mode() & 0o077 != 0 {
            found.push(path);
        }
    }
    found
}

/// A command that begins with a umask.
fn with_umask(mask: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask $0; exec \"$@\"", mask]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap());
    }
    shell.current_dir(command.get_current_dir().unwrap());
    shell
}

#[test]
fn a_store_is_its_owners_alone_under_any_umask() {
    for mask in ["000", "077"] {
        let workspace = Workspace::new();
        let run = |code, command| expect(code, &mut with_umask(mask, &command));
        let server = server(&workspace);
        run(0, server.capture(&workspace, &["--name", "shop"]));
        let mut images = fs::read_dir(workspace.store().join("images")).unwrap();
        assert!(images.next().is_some());
        run(0, workspace.warmimg(["restore", "-d", "shop"]));
        assert!(server.client.ask().unwrap().starts_with("200 "));
        run(
            0,
            workspace.warmimg(["export", "shop", "-o", "shop.tar.zst"]),
        );
        run(0, workspace.warmimg(["verify", "shop"]));
        // All is there that ever is: image, cache, instance, its log.
        assert_eq!(
            open_to_others(&workspace.store()),
            [""; 0].map(PathBuf::from),
            "{mask}"
        );
        let archive = workspace.path().join("shop.tar.zst");
        assert_eq!(open_to_others(&archive), [""; 0].map(PathBuf::from));
        run(0, workspace.warmimg(["stop", "--all"]));
        workspace.assert_clean();
    }
}

#[test]
fn what_may_be_secret_is_told_of_by_name() {
    let workspace = Workspace::new();
    let server = server(&workspace);
    expect(0, &mut server.capture(&workspace, &["--name", "shop"]));
    let line: Value = serde_json::from_str(&workspace.run(["inspect", "shop", "--json"])).unwrap();
    let found: Vec<(&str, &str, &str)> = line["sensitive"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| {
            let text = |name: &str| found[name].as_str().unwrap();
            assert!(!text("advice").is_empty());
            let about = text("about").rsplit('/').next().unwrap();
            (text("code"), about, text("note"))
        })
        .collect();
    for expected in [
        ("secret-environment", "SHOP_TOKEN", "its name says so"),
        (
            "secret-environment",
            "DATABASE_URL",
            "it is a URL with a password",
        ),
        ("private-key", "tls.pem", "was read"),
        ("private-key", "held.key", "still open"),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
    for code in ["random-state", "seeded-generator"] {
        assert!(found.iter().any(|(found, ..)| *found == code), "{found:?}");
    }
    let text = workspace.run(["inspect", "shop"]);
    assert!(text.contains("    SHOP_TOKEN (its name says so)"), "{text}");
    assert!(!text.contains("hunter"), "{text}");
    assert!(!line["sensitive"].to_string().contains("hunter"));
    workspace.assert_clean();
}
