//! Servers whose memory is mapped from their image, under load for a minute: a database, Go, Node and
//! a JVM, which all give memory back to the kernel while they work. What each answer has to be is
//! known, and compared.

mod caddy;
mod content;
mod held;
mod redis;

use std::{
    env, fs,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{Workspace, expect, finish, fixture, free_port, prepared, server::Server};
use crate::support::{ask::Client, servers};

/// For shorter or longer runs by hand.
const SECONDS_VARIABLE: &str = "WARMIMG_LOAD_SECONDS";

/// How many answers were right, or what was wrong with the next.
type Outcome = Result<u64, String>;

/// The time that all clients work.
struct Load {
    until: Instant,
    /// One has failed, so that the others need not go on.
    has_failed: AtomicBool,
}

impl Load {
    fn new() -> Self {
        let seconds = env::var(SECONDS_VARIABLE).ok();
        let seconds = seconds.map_or(60, |text| text.parse().unwrap());
        Self {
            until: Instant::now() + Duration::from_secs(seconds),
            has_failed: AtomicBool::new(false),
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.has_failed.load(Ordering::Relaxed)
    }

    /// Ends the work of all if one has failed.
    fn note(&self, outcome: Outcome) -> Outcome {
        if outcome.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

/// A Node with a small young generation, which it shrinks and lets grow.
fn node() -> Server {
    let port = free_port();
    let script = fixture("load/app.js");
    let words = ["node", "--expose-gc", "--max-semi-space-size=4", &script];
    Server::new(Client::Http(port), words)
        .environment("PORT", port.to_string())
        .environment("NODE_PATH", prepared("express/node_modules"))
}

/// A Tomcat that gives back its heap, the memory of its libraries and its threads whenever it can.
fn tomcat(workspace: &Workspace) -> Server {
    const OPTIONS: &str = "-Xms16m -Xmx256m -XX:+UseG1GC -XX:G1PeriodicGCInterval=1000 \
        -XX:MinHeapFreeRatio=5 -XX:MaxHeapFreeRatio=15 -XX:TrimNativeHeapInterval=500";
    let server = servers::tomcat(workspace).environment("CATALINA_OPTS", OPTIONS);
    let base = workspace.path().join("tomcat");
    let page = base.join("webapps/ROOT/load.jsp");
    fs::copy(fixture("load/load.jsp"), page).unwrap();
    let configuration = base.join("conf/server.xml");
    let text = fs::read_to_string(&configuration).unwrap();
    let threads = "<Connector minSpareThreads=\"1\" threadsMaxIdleTime=\"300\"";
    fs::write(configuration, text.replace("<Connector", threads)).unwrap();
    server
}

/// Captures one of them when it has been busy, with much that can be thrown away.
fn capture_busy(workspace: &Workspace, server: &Server, page: &str, name: &str) {
    let options = ["--name", name, "--at", "warm", "--warmup"].map(str::to_owned);
    let work = ["make", "apart"].map(|what| {
        let what = format!("{page}?do={what}&seed=1&length=100000&parts=20");
        [
            "--warmup".to_owned(),
            format!("{what},count=20,concurrency=4"),
        ]
    });
    let first = format!("{page}?do=sum&key=1,count=1");
    let options = [&options[..], &[first], &work.concat()].concat();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    expect(0, &mut server.capture(workspace, &options));
}

/// What the guard of an instance has done.
fn counters(workspace: &Workspace, name: &str) -> Value {
    let listed = workspace.run(["--json", "ps"]);
    let mut instances = listed
        .lines()
        .map(|line| -> Value { serde_json::from_str(line).unwrap() });
    let id = format!("{name}-1");
    let instance = instances.find(|instance| instance["id"] == id.as_str());
    instance.map_or(Value::Null, |mut instance| instance["guard"].take())
}

/// A line of the report.
fn line(name: &str, answers: u64, counters: &Value) -> String {
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    format!(
        "{name:<11} {answers:>9} {:>7} {:>7} {:>10} {:>7} {:>10} {:>7}\n",
        count("calls"),
        count("fresh"),
        count("fresh_bytes") >> 10,
        count("copied"),
        count("copied_bytes") >> 10,
        count("refused"),
    )
}

#[test]
fn servers_with_mapped_memory_answer_rightly_under_load() {
    let workspace = Workspace::new();
    let redis = redis::server();
    let mut databases = redis::fill_and_capture(&workspace, &redis, "redis");
    // Go throws memory away by MADV_DONTNEED, or by MADV_FREE.
    let caddies = [
        ("caddy", "madvdontneed=1"),
        ("caddy-free", "madvdontneed=0"),
    ];
    let caddies = caddies.map(|(name, setting)| {
        let caddy = caddy::Caddy::new(&workspace, name, setting);
        caddy.capture(&workspace);
        caddy
    });
    let node = node();
    capture_busy(&workspace, &node, "/load", "node");
    let tomcat = tomcat(&workspace);
    capture_busy(&workspace, &tomcat, "/load.jsp", "tomcat");

    let names = ["redis", "caddy", "caddy-free", "node", "tomcat"];
    for name in names {
        workspace.run(["restore", "-d", "--memory", "map", name]);
    }
    let load = &Load::new();
    let outcomes: Vec<(&str, Outcome)> = thread::scope(|scope| {
        let mut clients = Vec::new();
        for database in &mut databases {
            clients.push(("redis", scope.spawn(|| load.note(database.work(load)))));
        }
        for caddy in &caddies {
            let ask = |seed| move || load.note(caddy.ask(load, seed));
            clients.push((caddy.name, scope.spawn(ask(1))));
            clients.push((caddy.name, scope.spawn(ask(2))));
            clients.push((caddy.name, scope.spawn(|| load.note(caddy.reload(load)))));
        }
        for (name, server, page) in [("node", &node, "/load"), ("tomcat", &tomcat, "/load.jsp")] {
            let Client::Http(port) = server.client else {
                unreachable!("both are asked by HTTP")
            };
            for number in 0..held::CLIENTS {
                let work = move || load.note(held::work(load, port, page, number));
                clients.push((name, scope.spawn(work)));
            }
        }
        let ended = clients.into_iter();
        let ended = ended.map(|(name, client)| (name, client.join().unwrap()));
        ended.collect()
    });

    let mut report = format!(
        "{:<11} {:>9} {:>7} {:>7} {:>10} {:>7} {:>10} {:>7}\n",
        "", "answers", "calls", "fresh", "KiB", "copied", "KiB", "refused"
    );
    let mut answers = Vec::new();
    for name in names {
        let of_this = outcomes.iter().filter(|(of, _)| *of == name);
        let sum: u64 = of_this
            .filter_map(|(_, outcome)| outcome.as_ref().ok())
            .sum();
        report += &line(name, sum, &counters(&workspace, name));
        answers.push(sum);
    }
    println!("{report}");
    let failed = outcomes.iter().filter_map(|(name, outcome)| {
        let error = outcome.as_ref().err()?;
        let logs = finish(&mut workspace.warmimg(["logs", &format!("{name}-1")]));
        let logs = crate::support::describe(&logs);
        let logs: Vec<_> = logs.lines().rev().take(20).collect();
        let logs: Vec<_> = logs.into_iter().rev().collect();
        Some(format!("{name}: {error}\n{}\n", logs.join("\n")))
    });
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{}\n{report}", failed.concat());
    assert!(answers.iter().all(|&count| count > 0), "{report}");
    for name in names {
        assert_eq!(counters(&workspace, name)["refused"], 0, "{name}\n{report}");
    }
    let work = counters(&workspace, "redis");
    let work = work["fresh"].as_u64().unwrap() + work["copied"].as_u64().unwrap();
    assert!(work > 0, "the guard had nothing to do\n{report}");

    // All that the load has made of the memory becomes part of a new image.
    for memory in ["copy", "map"] {
        workspace.run(["checkpoint", "--pid", "redis-1", "--name", "redis"]);
        workspace.run(["restore", "-d", "--memory", memory, "redis"]);
        for database in &mut databases {
            database.check_all().unwrap();
        }
    }
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}
