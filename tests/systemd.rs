//! The units of the README, with a real systemd.

mod manager;

use std::{fs, time::Instant};

use assert_cmd::cargo::cargo_bin;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use self::manager::Systemd;
use crate::support::{Workspace, ask, expect, free_port, servers, source, wait_until};

/// The unit of the README that starts this command of warmimg, here with other words.
fn unit(command: &str, words: &str) -> String {
    let readme = fs::read_to_string(source("../README.md")).unwrap();
    let begin = format!("ExecStart=/usr/local/bin/warmimg {command}");
    let is_start = |line: &str| line == begin || line.starts_with(&format!("{begin} "));
    let mut units = readme.split("```ini\n").skip(1);
    let unit = units.find_map(|rest| {
        let (unit, _) = rest.split_once("```")?;
        unit.lines().any(is_start).then_some(unit)
    });
    let unit = unit.expect("the README has such a unit");
    let warmimg = cargo_bin!("warmimg").display();
    let lines = unit.lines().map(|line| match line {
        line if is_start(line) => format!("ExecStart={warmimg} {words}\n"),
        line if line.starts_with("WorkingDirectory=") => String::new(),
        line => format!("{line}\n"),
    });
    lines.collect()
}

/// What the test adds: where it works, and what marks its processes.
fn additions(workspace: &Workspace, environment: &[(&str, String)]) -> String {
    let place = workspace.path().display();
    let environment = environment.iter();
    let environment: String = environment
        .map(|(name, value)| format!("Environment={name}={value}\n"))
        .collect();
    format!(
        "[Service]\nWorkingDirectory={place}\nEnvironment=WARMIMG_STORE={place}/store\n{environment}\
         StandardOutput=append:{place}/log\nStandardError=append:{place}/log\n"
    )
}

fn wait_for_log(workspace: &Workspace, text: &str, count: usize) {
    wait_until(text, || {
        let log = fs::read_to_string(workspace.path().join("log")).unwrap_or_default();
        match log.matches(text).count() >= count {
            true => Ok(()),
            false => Err(log),
        }
    });
}

fn crash(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Waits until a service that crashed is up again, by another process.
fn wait_for_restart(systemd: &Systemd, service: &str, before: i32) {
    wait_until("the service to be up again", || {
        let state = systemd.show(service, "ActiveState");
        let pid = systemd.main_pid(service);
        match state == "active" && pid != before && pid != 0 {
            true => Ok(()),
            false => Err(format!("{state}, {pid} after {before}")),
        }
    });
    assert_eq!(systemd.show(service, "NRestarts"), "1");
}

#[test]
fn a_service_is_started_cold_then_restored_and_restarted() {
    let workspace = Workspace::new();
    let server = servers::express();
    let systemd = Systemd::start();
    let words = format!("--json run --name shop -- {}", server.command.join(" "));
    let more = additions(&workspace, &server.environment);
    systemd.add("shop", &unit("run", &words), &more);
    for (event, again) in [("captured", false), ("restored", true)] {
        let begun = Instant::now();
        systemd.control(&["start", "shop"]);
        // It listens when the command has returned.
        let answer = server.client.ask().unwrap();
        println!(
            "systemctl start, {event}: {} ms",
            begun.elapsed().as_millis()
        );
        assert_eq!(answer, "200 Hello from Express");
        wait_for_log(&workspace, &format!("\"event\":\"{event}\""), 1);
        if again {
            let before = systemd.main_pid("shop");
            crash(before);
            wait_for_restart(&systemd, "shop", before);
            assert_eq!(server.client.ask().unwrap(), "200 Hello from Express");
            wait_for_log(&workspace, "\"event\":\"restored\"", 2);
        }
        systemd.control(&["stop", "shop"]);
        // Nothing is left when the command has returned.
        assert!(server.client.is_refused());
        assert_eq!(workspace.processes(), []);
        assert_eq!(systemd.show("shop", "Result"), "success");
    }
    workspace.run(["stop", "--all"]);
    drop(systemd);
    workspace.assert_clean();
}

#[test]
fn a_gateway_that_crashes_is_restarted_and_adopts_its_instances() {
    let workspace = Workspace::new();
    let server = servers::express();
    expect(0, &mut server.capture(&workspace, &["--name", "site"]));
    let port = free_port();
    let config = format!("[site.site]\nlisten = {port}\nidle = 'never'\n");
    let config = workspace.write("serve.toml", &config);
    let systemd = Systemd::start();
    let words = format!("--json serve -c {config}");
    systemd.add(
        "gateway",
        &unit("serve", &words),
        &additions(&workspace, &[]),
    );
    systemd.control(&["start", "gateway"]);
    let ask = || ask::get(port, "/").unwrap();
    assert_eq!(ask(), "200 Hello from Express");
    wait_for_log(&workspace, "\"event\":\"woken\"", 1);
    // Which one it is; its memory changes.
    let instance = || {
        let record: Value = serde_json::from_str(&workspace.run(["--json", "ps"])).unwrap();
        ["id", "init", "started_ms", "state"].map(|name| record[name].clone())
    };
    let before = instance();

    let gateway = systemd.main_pid("gateway");
    crash(gateway);
    wait_for_restart(&systemd, "gateway", gateway);
    wait_for_log(&workspace, "\"event\":\"adopted\"", 1);
    assert_eq!(instance(), before);
    assert_eq!(ask(), "200 Hello from Express");
    systemd.control(&["reload", "gateway"]);
    assert_eq!(ask(), "200 Hello from Express");

    systemd.control(&["stop", "gateway"]);
    assert_eq!(workspace.processes(), []);
    assert_eq!(systemd.show("gateway", "Result"), "success");
    drop(systemd);
    workspace.assert_clean();
}
