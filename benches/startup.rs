//! Start-up of the real servers, cold and restored in turn: `cargo xtask bench`, with
//! `--runs N` and `--part servers|probe|fixed`.
//!
//! Prints, as medians: the first byte of the first response seen from outside after the start of
//! the process, cold and restored; the cost of the probe; and what `warmimg restore` costs beyond
//! what CRIU counts as its restore.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../tests/support/mod.rs"]
#[expect(
    dead_code,
    reason = "shared with the integration tests, which use the rest"
)]
mod support;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use support::{Killed, Workspace, server::Server, servers as real};
use warmimg::{tree::HostPid, watch::Watch};

/// How often the client tries, which is also its resolution.
const INTERVAL: Duration = Duration::from_micros(250);

/// Makes a server in a workspace.
type Make = fn(&Workspace) -> Server;

/// The value of an option on the command line.
fn option(name: &str) -> Option<String> {
    std::env::args()
        .skip_while(|argument| argument != name)
        .nth(1)
}

fn main() {
    let runs = option("--runs").map_or(9, |runs| runs.parse().expect("--runs takes a number"));
    let part = option("--part");
    let is_wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if is_wanted("servers") {
        servers(runs);
    }
    if is_wanted("probe") {
        probe_cost(runs);
    }
    if is_wanted("fixed") {
        fixed_cost(runs);
    }
}

fn servers(runs: usize) {
    println!("Medians of {runs}, cold and restored in turn; first byte of the first response.\n");
    println!(
        "{:<22} {:>9} {:>9} {:>7}",
        "server", "cold", "restored", "ratio"
    );
    let table: [(&str, Make); 7] = [
        ("Express", |_| real::express()),
        ("FastAPI", |_| real::fastapi_on_uvicorn()),
        ("Django, 2 workers", |_| real::django_on_gunicorn()),
        ("Rails", |_| real::rails_on_puma()),
        ("Tomcat", real::tomcat),
        ("Caddy", real::caddy),
        ("Apache with mod_php", real::apache_prefork_with_mod_php),
    ];
    for (name, server) in table {
        let workspace = Workspace::new();
        let server = server(&workspace);
        let output = support::finish(&mut server.capture(&workspace, &["--name", "server"]));
        assert!(output.status.success(), "{}", support::describe(&output));
        let (mut cold, mut restored) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            cold.push(first_byte_cold(&server, &workspace));
            restored.push(first_byte_restored(&server, &workspace));
        }
        let (cold, restored) = (median(cold), median(restored));
        let ratio = cold.as_secs_f64() / restored.as_secs_f64();
        println!(
            "{name:<22} {:>6.1} ms {:>6.1} ms {ratio:>6.1}x",
            ms(cold),
            ms(restored)
        );
    }
}

fn first_byte_cold(server: &Server, workspace: &Workspace) -> Duration {
    let begun = Instant::now();
    let cold = server.start_cold(workspace);
    let time = first_byte(server, begun);
    drop(cold);
    server.wait_for_silence();
    time
}

fn first_byte_restored(server: &Server, workspace: &Workspace) -> Duration {
    let mut command = workspace.warmimg(["restore", "server"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut restored = Killed(command.spawn().expect("warmimg starts"));
    let time = first_byte(server, begun);
    restored.signal(Signal::SIGTERM);
    restored.wait();
    server.wait_for_silence();
    time
}

fn first_byte(server: &Server, begun: Instant) -> Duration {
    loop {
        if server.client.ask().is_ok() {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < support::LIMIT, "no answer");
        std::thread::sleep(INTERVAL);
    }
}

/// Cold starts with and without the probe following them, in turn.
fn probe_cost(runs: usize) {
    println!(
        "\n{:<22} {:>9} {:>9} {:>7}",
        "cost of the probe", "without", "with", ""
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let _inside = runtime.enter();
    for (name, server) in [
        ("Express", real::express as fn() -> Server),
        ("Django, 2 workers", real::django_on_gunicorn),
        ("Rails", real::rails_on_puma),
    ] {
        let workspace = Workspace::new();
        let server = server();
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..runs * 2 {
            // Attached both times, so that what it takes to attach burdens both starts.
            let attach = || Watch::attach(None).expect("the probe attaches");
            drop(attach());
            without.push(first_byte_cold(&server, &workspace));
            let mut watch = attach();
            watch
                .follow(HostPid(std::process::id() as i32))
                .expect("this process is followed");
            with.push(first_byte_cold(&server, &workspace));
        }
        let (without, with) = (median(without), median(with));
        let more = (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0;
        println!(
            "{name:<22} {:>6.1} ms {:>6.1} ms {more:>+6.1}%",
            ms(without),
            ms(with)
        );
    }
}

/// The time from the start of `warmimg restore -d` to its end, less CRIU's own restore time.
fn fixed_cost(runs: usize) {
    println!(
        "\n{:<22} {:>9} {:>9} {:>7}",
        "fixed cost", "restore", "CRIU", "beyond"
    );
    let workspace = Workspace::new();
    let server = real::express();
    let output = support::finish(&mut server.capture(&workspace, &["--name", "server"]));
    assert!(output.status.success(), "{}", support::describe(&output));
    let (mut whole, mut criu, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let mut command = workspace.warmimg(["--json", "restore", "-d", "server"]);
        let begun = Instant::now();
        let output = command.output().expect("warmimg starts");
        let time = begun.elapsed();
        let line = String::from_utf8_lossy(&output.stdout);
        let report: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let in_criu = report["criu_restore_us"]
            .as_u64()
            .expect("CRIU's statistics");
        let in_criu = Duration::from_micros(in_criu);
        whole.push(time);
        criu.push(in_criu);
        beyond.push(time.saturating_sub(in_criu));
        workspace.run(["stop", "--all"]);
        server.wait_for_silence();
    }
    let (whole, criu, beyond) = (ms(median(whole)), ms(median(criu)), ms(median(beyond)));
    println!(
        "{:<22} {whole:>6.1} ms {criu:>6.1} ms {beyond:>4.1} ms",
        "Express"
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
