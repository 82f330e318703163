//! What is secret in a store is its owner's alone, and `inspect` tells of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::support::{Workspace, ask::Client, expect, free_port, server::Server, servers};

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

/// A runtime, and what `inspect` is to say of a server of it.
struct Runtime {
    server: Server,
    /// What its name and its note begin with, if its generator is seeded before the freeze.
    seeded: Option<(&'static str, &'static str)>,
    /// Where the random state of OpenSSL is.
    random_state: Option<&'static str>,
}

/// A server in Node.js that answers with a random number; it has read a key, as all of these.
fn node(workspace: &Workspace) -> Runtime {
    let port = free_port();
    let text = format!(
        "require('fs').readFileSync('tls.pem');
         require('http').createServer((_, answer) => answer.end(String(Math.random())))
             .listen({port}, '127.0.0.1');"
    );
    let program = workspace.write("app.js", &text);
    Runtime {
        server: Server::new(Client::Http(port), ["node", &program]),
        seeded: Some(("node", "Node.js: Math.random()")),
        // In the program, or in a library of the distribution.
        random_state: Some(""),
    }
}

fn ruby(workspace: &Workspace) -> Runtime {
    let port = free_port();
    let text = "require 'openssl'\nFile.read('tls.pem')\n\
                run ->(_) { [200, { 'content-type' => 'text/plain' }, [rand.to_s]] }\n";
    let application = workspace.write("config.ru", text);
    let address = format!("tcp://127.0.0.1:{port}");
    let words = ["/usr/bin/puma", "-C", "/dev/null", "-b"];
    let words = words.into_iter().chain([address.as_str(), &application]);
    Runtime {
        server: Server::new(Client::Http(port), words),
        seeded: Some(("ruby", "Ruby: rand and Random")),
        random_state: Some("libcrypto.so"),
    }
}

/// PHP seeds its generators at each request, from 8.2 on.
fn php(workspace: &Workspace) -> Runtime {
    let port = free_port();
    let text = "<?php file_get_contents('tls.pem'); echo mt_rand();";
    let script = workspace.write("index.php", text);
    let address = format!("127.0.0.1:{port}");
    Runtime {
        server: Server::new(Client::Http(port), ["php", "-S", &address, &script]),
        seeded: None,
        random_state: Some("libcrypto.so"),
    }
}

fn java(workspace: &Workspace) -> Runtime {
    let server = servers::tomcat(workspace);
    let text = "<%! static final byte[] KEY = read(); static byte[] read() { try {\n\
                return java.nio.file.Files.readAllBytes(java.nio.file.Path.of(\"tls.pem\"));\n\
                } catch (java.io.IOException e) { return null; } } %><%= Math.random() %>";
    workspace.write("tomcat/webapps/ROOT/index.jsp", text);
    Runtime {
        server,
        seeded: Some(("libjvm.so", "Java: Random")),
        // It has its own cryptography.
        random_state: None,
    }
}

/// What is said of a code, each by the name of its file.
fn said<'a>(line: &'a Value, code: &str) -> Vec<(&'a str, &'a str)> {
    let found = line["sensitive"].as_array().unwrap().iter();
    let found = found.filter(|found| found["code"] == code);
    let text = |found: &'a Value, name: &str| found[name].as_str().unwrap();
    found
        .map(|found| {
            let about = text(found, "about");
            (about.rsplit('/').next().unwrap(), text(found, "note"))
        })
        .collect()
}

#[test]
fn what_is_said_of_each_runtime_is_true() {
    for runtime in [node, ruby, php, java] {
        let workspace = Workspace::new();
        workspace.write("tls.pem", KEY);
        let Runtime {
            server,
            seeded,
            random_state,
        } = runtime(&workspace);
        let server = server.environment("SHOP_TOKEN", "hunter2");
        let capture = ["--name", "shop", "--at", "warm"];
        expect(0, &mut server.capture(&workspace, &capture));
        server.wait_for_silence();
        let inspected = workspace.run(["--json", "inspect", "shop"]);
        let line: Value = serde_json::from_str(&inspected).unwrap();
        let variables = said(&line, "secret-environment");
        assert!(
            variables.contains(&("SHOP_TOKEN", "its name says so")),
            "{line}"
        );
        assert_eq!(said(&line, "private-key"), [("tls.pem", "was read")]);
        match (said(&line, "random-state")[..].split_first(), random_state) {
            (None, None) => {}
            (Some(((about, _), [])), Some(expected)) if about.starts_with(expected) => {}
            (found, _) => panic!("{random_state:?}: {found:?}"),
        }
        let is_expected = |found: &(&str, &str)| {
            seeded.is_some_and(|(about, note)| {
                found.0.starts_with(about) && found.1.starts_with(note)
            })
        };
        let generators = said(&line, "seeded-generator");
        assert_eq!(
            generators.len(),
            usize::from(seeded.is_some()),
            "{generators:?}"
        );
        assert!(generators.iter().all(is_expected), "{generators:?}");
        // And so it is: copies draw the same number, or do not.
        let drawn = [(), ()].map(|()| {
            workspace.run(["restore", "-d", "shop"]);
            let number = server.client.ask().unwrap();
            assert!(number.starts_with("200 ") && number.len() > 8, "{number}");
            workspace.run(["stop", "--all"]);
            server.wait_for_silence();
            number
        });
        assert_eq!(drawn[0] == drawn[1], seeded.is_some(), "{drawn:?}");
        workspace.assert_clean();
    }
}
