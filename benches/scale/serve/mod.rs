//! `warmimg serve`: how soon sites wake, what they cost while they sleep, and that nobody notices.

pub mod awake;
pub mod boundary;
pub mod crowd;
pub mod many;
pub mod wake;

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::PathBuf,
    time::Instant,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    Bench, LIMIT, ask,
    restores::ms,
    support::{Killed, Workspace, free_port, journal, wait_until},
};

/// A gateway on the store of a workspace.
struct Gateway<'a> {
    workspace: &'a Workspace,
    child: Killed,
    log: PathBuf,
}

impl<'a> Gateway<'a> {
    /// Serves these sites, each of the image that its settings name. Returns the ports in the same order.
    fn start(workspace: &'a Workspace, sites: &[(String, String)]) -> (Self, Vec<u16>) {
        let ports: Vec<u16> = sites.iter().map(|_| free_port()).collect();
        let mut text = String::new();
        for ((name, settings), port) in sites.iter().zip(&ports) {
            let _ = writeln!(text, "[site.{name}]\nlisten = {port}\n{settings}");
        }
        let path = workspace.write("serve.toml", &text);
        let log = workspace.path().join("serve.log");
        let mut command = workspace.warmimg(["--json", "serve", "--config", &path]);
        let errors = File::create(workspace.path().join("serve.err")).unwrap();
        command.stdout(File::create(&log).unwrap()).stderr(errors);
        let gateway = Self {
            workspace,
            child: Killed(command.spawn().unwrap()),
            log,
        };
        journal::wait_for(&gateway.log, "listening", sites.len());
        (gateway, ports)
    }

    fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }

    fn events(&self, kind: &str) -> Vec<Value> {
        journal::events(&self.log, kind)
    }

    /// How long the gateway needed to bring up the instance that it has brought up last.
    fn last_wake(&self) -> f64 {
        let woken = self.events("woken");
        woken.last().unwrap()["took_us"].as_f64().unwrap() / 1e3
    }

    /// Waits until all sites sleep, and nothing is left of their instances but of those that stand by.
    fn wait_for_sleep(&self, standing_by: usize) {
        wait_until("the sites to sleep", || {
            let (woken, ended) = (self.events("woken").len(), self.events("ended").len());
            let left = fs::read_dir(self.workspace.store().join("instances"));
            let left = left.unwrap().count();
            match woken == ended && left == standing_by {
                true => Ok(()),
                false => Err(format!("{woken} woken, {ended} ended, {left} there")),
            }
        });
        if standing_by > 0 {
            self.wait_for_standby(standing_by);
        }
    }

    /// Waits until that many instances stand by: restored, and frozen.
    fn wait_for_standby(&self, wanted: usize) {
        wait_until("instances to stand by", || {
            let top = self.workspace.run(["--json", "top", "--once"]);
            let sites = top
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let stand_by = sites.filter_map(|site| Some(site["standing_by"].as_array()?.len()));
            match stand_by.sum::<usize>() {
                found if found == wanted => Ok(()),
                found => Err(format!("{found} stand by")),
            }
        });
    }

    /// Ends it, and sees that nothing is left.
    fn end(mut self) {
        self.child.signal(Signal::SIGTERM);
        assert_eq!(self.child.wait(), Some(0));
        self.workspace.assert_clean();
    }
}

impl Bench {
    /// The time from before the connection to the first byte of the answer, in milliseconds.
    fn answer(&self, port: u16) -> f64 {
        let begun = Instant::now();
        let answer = async { tokio::time::timeout(LIMIT, ask::first_byte(port, begun)).await };
        let answered = self.runtime.block_on(answer);
        self.heed();
        ms(answered.expect("an answer"))
    }
}
