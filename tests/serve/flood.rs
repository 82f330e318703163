//! Floods of connections to sites that sleep: what they cost the gateway and the host is bounded, and
//! other sites do not notice. And many sites.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::Served;
use crate::support::{Killed, ask, free_port, source, wait_until};

/// As many connections as a flood has.
const FLOOD: usize = 3000;

/// By how much it may let the gateway grow, in KiB.
const GROWTH_KIB: u64 = 2048;

/// Floods a port from a process of its own. Returns how many connections were made.
fn flood(kind: &str, port: u16) -> (Killed, usize) {
    let mut python = Command::new("/usr/bin/python3");
    let script = source("serve/flood.py");
    python.args([&script, kind, &port.to_string(), &FLOOD.to_string()]);
    let mut child = Killed(python.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

/// What a gateway has: its memory at most so far, and its descriptors.
struct Held {
    peak_kib: u64,
    descriptors: usize,
}

impl Held {
    fn of(served: &Served) -> Self {
        let pid = served.gateway.as_ref().unwrap().0.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.unwrap().trim().trim_end_matches(" kB");
        Self {
            peak_kib: peak.parse().unwrap(),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }

    fn assert_like(&self, before: &Self) {
        let grown = self.peak_kib - before.peak_kib;
        assert!(grown <= GROWTH_KIB, "{grown} KiB more");
        // An instance has some.
        let more = self.descriptors.saturating_sub(before.descriptors);
        assert!(more <= 16, "{more} descriptors more");
    }
}

/// A command with few descriptors, and the right to have more.
fn below_prlimit(command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=64:4096", "--"]);
    limited.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs();
    limited.envs(set.filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(command.get_current_dir().unwrap());
    limited
}

/// How often a site was brought up.
fn woken(served: &Served, site: &str) -> usize {
    let of_site = |event: &&serde_json::Value| event["site"] == site;
    served.events("woken").iter().filter(of_site).count()
}

#[test]
fn more_sites_than_the_soft_limit_of_descriptors_allows() {
    const SITES: u16 = 60;
    let mut served = Served::new();
    let ports: Vec<u16> = (0..SITES).map(|_| free_port()).collect();
    let sites = ports.iter().enumerate();
    let text: String = sites
        .map(|(number, port)| {
            format!("[site.site-{number}]\nimage = 'site'\nlisten = {port}\nidle = '100ms'\n")
        })
        .collect();
    let path = served.workspace.write("serve.toml", &text);
    let command = served.workspace.warmimg(["--json", "serve", "-c", &path]);
    let mut command = below_prlimit(&command);
    command.stdout(fs::File::create(served.log()).unwrap());
    served.gateway = Some(Killed(command.spawn().unwrap()));
    served.wait_for("listening", SITES.into());
    for port in [ports[0], *ports.last().unwrap()] {
        assert_eq!(ask::get(port, "/").unwrap(), "200 1");
    }
    served.wait_for("ended", 2);
    assert_eq!(served.events("failed").len(), 0);
    served.end();
}

#[test]
fn a_flood_of_connections_has_bounds_and_harms_no_other_site() {
    let mut served = Served::new();
    let [silent, hung_up, half_open, other] = [(); 4].map(|()| free_port());
    let more = format!(
        "[site.silent]\nlisten = {silent}\nimage = 'site'\nconnections = 10\nmax = 3\n\
         [site.hung-up]\nlisten = {hung_up}\nimage = 'site'\nidle = '100ms'\n\
         [site.half-open]\nlisten = {half_open}\nimage = 'site'\n\
         [site.other]\nlisten = {other}\nimage = 'site'\nidle = '20ms'\n"
    );
    served.start_all("", &more, 5);
    // What every gateway has needed once.
    assert_eq!(ask::get(other, "/").unwrap(), "200 1");
    served.wait_for("ended", 1);
    let before = Held::of(&served);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut longest) = (0, Duration::ZERO);
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = ask::get(other, "/");
                assert!(answer.is_ok(), "{answer:?}");
                longest = longest.max(begun.elapsed());
                asked += 1;
                // The pace of the load, not a wait.
                thread::sleep(Duration::from_millis(asked % 4 * 20));
            }
            (asked, longest)
        });

        // Nobody has a connection before it is made: the site sleeps on, and those who make one are
        // answered.
        let (flooding, _) = flood("half-open", half_open);
        assert_eq!(woken(&served, "half-open"), 0);
        assert_eq!(ask::get(half_open, "/").unwrap(), "200 1");
        drop(flooding);

        let begun = Instant::now();
        let (flooding, made) = flood("hang-up", hung_up);
        // It has to be idle in between.
        let most = begun.elapsed().as_millis() as usize / 100 + 1;
        let found = woken(&served, "hung-up");
        println!("{made} hung up: {found} restores of at most {most}");
        assert!((1..=most).contains(&found), "{found} of at most {most}");
        drop(flooding);

        let (flooding, made) = flood("silent", silent);
        println!("{made} silent");
        wait_until("all instances", || match woken(&served, "silent") {
            3 => Ok(()),
            found => Err(format!("{found} instances")),
        });
        Held::of(&served).assert_like(&before);
        drop(flooding);

        is_over.store(true, Ordering::Relaxed);
        let (asked, longest) = asking.join().unwrap();
        println!("the other site: {asked} requests, {longest:?} at most");
    });
    assert_eq!(woken(&served, "silent"), 3);
    Held::of(&served).assert_like(&before);
    assert_eq!(served.events("failed").len(), 0);
    served.end();
}
