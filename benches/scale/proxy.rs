//! Requests per second through the proxy, against nginx's `proxy_pass` with kept connections, by wrk(1): in
//! turn, before the same site.

use std::{fs, process::Command};

use procfs::process::Process;
use warmimg::{bench::statistics::Pairs, proxy::plan::Upstream};

use crate::{
    Bench, Subject,
    gateway::Gateway,
    memory::children,
    port,
    results::{Finding, Measured, Row},
    support::{self, Workspace, ask::Client, free_port, server::Server, servers},
    throughput::ticks,
    wrk,
};

const CONNECTIONS: u32 = 32;

const SUBJECTS: [Subject; 2] = [
    ("nginx", |workspace| {
        nginx(workspace, "site", "1", "return 200 Hello;")
    }),
    ("Express", |_| servers::express()),
];

/// What was seen of a proxy, a sample for each round.
#[derive(Default)]
struct Seen {
    per_second: Vec<f64>,
    p99_ms: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Seen {
    fn row(&self, name: String) -> Row {
        Row::new(name)
            .with("requests", "/s", self.per_second.clone())
            .with("p99", "ms", self.p99_ms.clone())
            .with("CPU time of a request", "µs", self.cpu_us.clone())
    }
}

pub fn measure(_: &Bench, runs: usize) -> Measured {
    let (mut rows, mut findings) = (vec![], vec![]);
    for (name, make) in SUBJECTS {
        let (behind, before) = (Workspace::alone(), tempfile::tempdir().unwrap());
        let site = make(&behind);
        let running_site = site.start_cold(&behind);
        site.client.ask_until_answered();
        let gateway = Gateway::start_with(
            &[("site", Upstream::Tcp(([127, 0, 0, 1], port(&site)).into()))],
            |plan| plan.routes[0].hosts.clear(),
        );
        let (other, other_port) = nginx_proxy(before.path(), port(&site));
        Client::Http(other_port).ask_until_answered();
        let own = i32::try_from(gateway.child.0.id()).unwrap();
        let workers = |pid: i32| children(pid).into_iter().chain([pid]).collect::<Vec<_>>();
        let (mut warmimg, mut nginx) = (Seen::default(), Seen::default());
        for round in 0..runs {
            let mut turns = [
                (gateway.address.port(), workers(own), &mut warmimg),
                (other_port, workers(other.0.id() as i32), &mut nginx),
            ];
            // Each is first in every second round.
            turns.rotate_left(round % 2);
            for (port, pids, seen) in turns {
                observe(port, &pids, seen);
            }
        }
        let mut found = |what: &str, of: fn(&Seen) -> &Vec<f64>| {
            let ratio = Pairs::new(of(&warmimg), of(&nginx)).ratio();
            findings.push(Finding::new(
                format!("before {name}, {what}, of nginx's"),
                "x",
                ratio,
            ));
        };
        found("requests", |seen| &seen.per_second);
        found("p99", |seen| &seen.p99_ms);
        found("CPU time of a request", |seen| &seen.cpu_us);
        rows.push(warmimg.row(format!("warmimg proxy before {name}")));
        rows.push(nginx.row(format!("nginx before {name}")));
        let mut other = other;
        other.signal(nix::sys::signal::Signal::SIGTERM);
        other.wait();
        drop((gateway, running_site));
        site.wait_for_silence();
        behind.assert_clean();
    }
    Measured { rows, findings }
}

/// Asks for five seconds, after one to warm up.
fn observe(port: u16, pids: &[i32], seen: &mut Seen) {
    let cpu = || -> u64 {
        pids.iter()
            .map(|&pid| Process::new(pid).map_or(0, ticks))
            .sum()
    };
    wrk::load(port, CONNECTIONS, 1);
    let before = cpu();
    let answered = wrk::load(port, CONNECTIONS, 5);
    let cpu_seconds = (cpu() - before) as f64 / procfs::ticks_per_second() as f64;
    seen.per_second.push(answered.per_second);
    seen.p99_ms.push(answered.p99_ms);
    seen.cpu_us.push(cpu_seconds * 1e6 / answered.requests);
}

/// An nginx with one location, which runs in the foreground.
fn nginx(workspace: &Workspace, name: &str, workers: &str, location: &str) -> Server {
    let port = free_port();
    let path = configuration(workspace.path(), name, workers, port, "", location);
    Server::new(Client::Http(port), ["/usr/sbin/nginx", "-c", &path])
}

/// An nginx before a site, which does what the proxy does.
fn nginx_proxy(folder: &std::path::Path, site: u16) -> (support::Killed, u16) {
    let port = free_port();
    let upstream = format!(
        "upstream site {{ server 127.0.0.1:{site}; keepalive 64; keepalive_requests 100000000; }}"
    );
    let location = "proxy_pass http://site; proxy_http_version 1.1; \
        proxy_set_header Connection ''; proxy_set_header Host $http_host; \
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
        proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host; \
        proxy_set_header X-Request-Id $request_id;";
    let path = configuration(folder, "proxy", "auto", port, &upstream, location);
    let child = Command::new("/usr/sbin/nginx")
        .args(["-c", &path])
        .spawn()
        .unwrap();
    (support::Killed(child), port)
}

fn configuration(
    folder: &std::path::Path,
    name: &str,
    workers: &str,
    port: u16,
    upstream: &str,
    location: &str,
) -> String {
    let place = folder.display();
    let path = folder.join(format!("{name}.conf"));
    let text = format!(
        "daemon off; worker_processes {workers}; pid {place}/{name}.pid; error_log /dev/null crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 100000000; {upstream}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }} }}\n"
    );
    fs::write(&path, text).unwrap();
    path.display().to_string()
}
