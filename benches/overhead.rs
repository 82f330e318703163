//! What warmimg itself costs: `cargo xtask bench overhead [--runs N] [--part probe|profile|fixed]
//! [--server NAME]`.
//!
//! Prints, as medians: start-up with and without the probe; start-up while it is profiled, without and
//! with stacks, and below strace(1); and what `warmimg restore` costs beyond what CRIU counts as its
//! restore.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../tests/support/mod.rs"]
#[expect(
    dead_code,
    reason = "shared with the integration tests, which use the rest"
)]
mod support;

use std::time::{Duration, Instant};

use support::{Workspace, ask::Client, server::Server, servers as real};
use warmimg::{report::profile::json, tree::HostPid, watch::Watch};

/// How often the client tries, which is also its resolution.
const INTERVAL: Duration = Duration::from_micros(250);

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
    if is_wanted("probe") {
        probe_cost(runs);
    }
    if is_wanted("profile") {
        profile_cost(runs);
    }
    if is_wanted("fixed") {
        fixed_cost(runs);
    }
}

fn first_byte_cold(server: &Server, workspace: &Workspace) -> Duration {
    let cold = server.start_cold(workspace);
    // From the execution of the command on, as a profile.
    let path = format!("/proc/{}/comm", cold.pid());
    let is_setsid = || std::fs::read_to_string(&path).is_ok_and(|name| name.trim() == "setsid");
    let begun = Instant::now();
    while is_setsid() && begun.elapsed() < support::LIMIT {
        std::hint::spin_loop();
    }
    let time = first_byte(server, Instant::now());
    drop(cold);
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
        let workspace = Workspace::alone();
        let server = server();
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..runs * 2 {
            // Attached both times, so that what it takes to attach burdens both starts.
            let attach = || Watch::attach(None, None).expect("the probe attaches");
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

/// Cold starts to the first response: as they are, profiled, and below strace, in turn.
fn profile_cost(runs: usize) {
    println!(
        "\n{:<22} {:>9} {:>18} {:>18} {:>18}",
        "cost of a profile", "without", "without stacks", "with stacks", "strace -f"
    );
    type Make = fn(&Workspace) -> Server;
    let servers: [(&str, Make); 5] = [
        ("nginx", real::nginx),
        ("Express", |_| real::express()),
        ("Django, 2 workers", |_| real::django_on_gunicorn()),
        ("Rails", |_| real::rails_on_puma()),
        ("Tomcat", real::tomcat),
    ];
    let only = option("--server");
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| name.starts_with(only));
    for (name, make) in servers.into_iter().filter(|(name, _)| is_wanted(name)) {
        let workspace = Workspace::alone();
        let server = make(&workspace);
        let mut times: [Vec<Duration>; 4] = Default::default();
        for _ in 0..runs {
            times[0].push(first_byte_cold(&server, &workspace));
            times[1].push(profiled(&server, &workspace, "0"));
            times[2].push(profiled(&server, &workspace, "999"));
            let strace = ["strace", "-f", "-o", "/dev/null"].map(str::to_owned);
            let traced = Server {
                command: [&strace, &server.command[..]].concat(),
                environment: server.environment.clone(),
                user: server.user,
                client: server.client.clone(),
            };
            times[3].push(first_byte_cold(&traced, &workspace));
        }
        let [without, rest @ ..] = times.map(median);
        print!("{name:<22} {:>6.1} ms", ms(without));
        for with in rest {
            let more = (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0;
            print!(" {:>6.1} ms {more:>+6.1}%", ms(with));
        }
        println!();
    }
}

/// The time to the first response that a profile tells of.
fn profiled(server: &Server, workspace: &Workspace, frequency: &str) -> Duration {
    let Client::Http(port) = server.client else {
        unreachable!("all are asked by HTTP")
    };
    let path = workspace.path().join("profile.jsonl");
    let (file, url) = (path.display(), format!("http://127.0.0.1:{port}/"));
    let options = ["profile", "-F", frequency, "--url", &url, "-o"].map(str::to_owned);
    let mut words = options.to_vec();
    words.push(file.to_string());
    if let Some(user) = server.user {
        words.extend(["--user".to_owned(), user.to_owned()]);
    }
    words.push("--".to_owned());
    words.extend(server.command.clone());
    let mut command = workspace.warmimg(words);
    command.envs(server.environment.iter().map(|(name, value)| (name, value)));
    support::expect(0, &mut command);
    server.wait_for_silence();
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let profile = json::read(file).unwrap();
    assert_eq!(profile.lost.events, 0, "events were lost");
    Duration::from_nanos(profile.length_ns)
}

/// The time from the start of `warmimg restore -d` to its end, less CRIU's own restore time.
fn fixed_cost(runs: usize) {
    println!(
        "\n{:<22} {:>9} {:>9} {:>7}",
        "fixed cost", "restore", "CRIU", "beyond"
    );
    let workspace = Workspace::alone();
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
