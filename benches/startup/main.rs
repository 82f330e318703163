//! Start-up of the real servers, measured by `warmimg bench`: `cargo xtask bench`.
//!
//! `--runs N` sets the number of runs, names choose servers, and `--document` only writes the
//! documents anew. Results go to `benches/results/`, and from all that is there BENCHMARKS.md, the
//! chart, and the table in README.md are made.

#![expect(clippy::unwrap_used, reason = "it fails by panicking")]

mod document;
mod scale;
#[path = "../../tests/support/mod.rs"]
#[expect(
    dead_code,
    reason = "shared with the integration tests, which use the rest"
)]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{
    Workspace,
    ask::{Client, fast_cgi_request},
    fixture, free_port,
    server::Server,
    servers,
};

/// A server of the suite.
struct Entry {
    /// The name of its results.
    name: &'static str,
    /// The capture points that make sense for it.
    points: &'static str,
    title: &'static str,
    /// Prints its version.
    version: &'static [&'static str],
    make: fn(&Workspace) -> Server,
    /// Whether a plain `criu restore` can restore it: as root, on a machine without
    /// CAP_SYS_RESOURCE, it cannot restore processes of another user.
    plain_criu: bool,
}

const SUITE: [Entry; 13] = [
    Entry {
        name: "express",
        points: "listen,ready,warm",
        title: "Express (Node)",
        version: &["node", "--version"],
        make: |_| servers::express(),
        plain_criu: true,
    },
    Entry {
        name: "fastapi",
        points: "listen,ready,warm",
        title: "FastAPI (uvicorn)",
        version: &["uvicorn", "--version"],
        make: |_| servers::fastapi_on_uvicorn(),
        plain_criu: true,
    },
    Entry {
        name: "fastapi-unix",
        points: "ready,warm",
        title: "FastAPI, Unix socket",
        version: &["uvicorn", "--version"],
        make: servers::uvicorn_on_a_unix_socket,
        plain_criu: true,
    },
    Entry {
        name: "django",
        points: "fork,ready,warm",
        title: "Django (gunicorn, 2 workers)",
        version: &["python3", "-m", "django", "--version"],
        make: |_| servers::django_on_gunicorn(),
        plain_criu: true,
    },
    Entry {
        name: "django-preload",
        points: "fork,ready,warm",
        title: "Django (gunicorn --preload, 2 workers)",
        version: &["python3", "-m", "django", "--version"],
        make: |_| servers::django_on_gunicorn_preloaded(),
        plain_criu: true,
    },
    Entry {
        name: "rails",
        points: "listen,ready,warm",
        title: "Rails (puma)",
        version: &["rails", "--version"],
        make: |_| servers::rails_on_puma(),
        plain_criu: true,
    },
    Entry {
        name: "tomcat",
        points: "listen,ready,warm",
        title: "Tomcat (JVM)",
        version: &["/usr/share/tomcat10/bin/catalina.sh", "version"],
        make: servers::tomcat,
        plain_criu: true,
    },
    Entry {
        name: "python-700mb",
        points: "ready,warm",
        title: "Python, 700 MB of heap",
        version: &["/usr/bin/python3", "--version"],
        make: |_| large_heap(),
        plain_criu: true,
    },
    Entry {
        name: "caddy",
        points: "listen,ready,warm",
        title: "Caddy (Go)",
        version: &["caddy", "version"],
        make: servers::caddy,
        plain_criu: true,
    },
    Entry {
        name: "apache-php",
        points: "listen,fork,ready,warm",
        title: "Apache with mod_php",
        version: &["apache2", "-v"],
        make: servers::apache_prefork_with_mod_php,
        plain_criu: false,
    },
    Entry {
        name: "php-fpm",
        points: "listen,fork,ready",
        title: "php-fpm",
        version: &["php-fpm8.2", "--version"],
        make: servers::php_fpm,
        plain_criu: false,
    },
    Entry {
        name: "nginx",
        points: "listen,fork,ready,warm",
        title: "nginx, 2 workers",
        version: &["nginx", "-v"],
        make: servers::nginx,
        plain_criu: false,
    },
    Entry {
        name: "accept-loop",
        points: "listen,ready",
        title: "C accept loop (the floor)",
        version: &["cc", "--version"],
        make: |workspace| servers::accept_loop(workspace, &[]),
        plain_criu: true,
    },
];

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    arguments.retain(|argument| argument != "--bench");
    let runs = match arguments.iter().position(|argument| argument == "--runs") {
        Some(place) => arguments.drain(place..place + 2).nth(1).unwrap(),
        None => "15".to_owned(),
    };
    let only_document = arguments == ["--document"];
    if !only_document {
        let unknown = arguments
            .iter()
            .find(|name| SUITE.iter().all(|entry| entry.name != **name));
        if let Some(unknown) = unknown {
            let names: Vec<_> = SUITE.iter().map(|entry| entry.name).collect();
            eprintln!(
                "no server of the suite is called {unknown:?}; there are: {}",
                names.join(", ")
            );
            std::process::exit(2);
        }
        for entry in &SUITE {
            if arguments.is_empty() || arguments.iter().any(|name| name == entry.name) {
                measure(entry, &runs);
            }
        }
    }
    document::write(&root(), &results(), &SUITE);
}

/// The root of the checkout.
fn root() -> PathBuf {
    let userspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    userspace.parent().unwrap().to_path_buf()
}

/// Where results are kept.
fn results() -> PathBuf {
    root().join("benches/results")
}

fn measure(entry: &Entry, runs: &str) {
    println!("== {}", entry.title);
    let workspace = Workspace::alone();
    let server = (entry.make)(&workspace);
    let export = workspace.path().join("results.json");
    let asked = how_to_ask(&server.client);
    let mut options = vec!["--runs", runs, "--at", entry.points];
    options.extend(["--export-json", export.to_str().unwrap()]);
    options.extend(asked.iter().map(String::as_str));
    if entry.plain_criu {
        options.extend(["--baseline", "criu"]);
    }
    let mut bench = server.bench(&workspace, &options);
    let status = bench.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{}: {status}", entry.name);
    workspace.assert_clean();
    fs::create_dir_all(results()).unwrap();
    let stored = portable(&fs::read_to_string(&export).unwrap(), &workspace);
    let stored = document::with_version(&stored, &version(entry));
    fs::write(results().join(format!("{}.json", entry.name)), stored).unwrap();
}

/// The options with which `warmimg bench` asks as this client does.
fn how_to_ask(client: &Client) -> Vec<String> {
    match client {
        // By HTTP what the server listens on: it does so by itself.
        Client::Http(_) | Client::HttpOverUnix(_) => vec![],
        Client::FastCgi(port, script) => {
            let bytes = fast_cgi_request(script);
            let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            let url = format!("tcp://127.0.0.1:{port}");
            vec!["--url".into(), url, "--send".into(), bytes]
        }
    }
}

/// Python with 700 MB of heap.
fn large_heap() -> Server {
    let port = free_port();
    let script = fixture("heap/server.py");
    let command = ["/usr/bin/python3", &script, &port.to_string()];
    Server::new(Client::Http(port), command)
}

/// Results without the folders of this machine.
fn portable(text: &str, workspace: &Workspace) -> String {
    let root = format!("{}/", root().display());
    let text = text
        .replace(workspace.path().to_str().unwrap(), "WORK")
        .replace(&root, "");
    // The store of a measurement has a number, and is gone with it.
    let mut words: Vec<&str> = text.split("WORK/store/staging/").collect();
    let mut portable = words.remove(0).to_owned();
    for word in words {
        let (_, rest) = word.split_once("/work").unwrap();
        portable += &format!("STORE{rest}");
    }
    portable
}

/// The first line of what a program says of its version.
fn version(entry: &Entry) -> String {
    let [program, arguments @ ..] = entry.version else {
        unreachable!("each entry names a program");
    };
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .find(|line| line.chars().any(|c| c.is_ascii_digit()));
    line.unwrap_or("unknown").trim().to_owned()
}
