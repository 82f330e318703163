//! Sites behind one port.

use std::{
    fs,
    io::{Read as _, Write as _},
    thread,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Client, Served};
use crate::support::{ask, free_port};

/// Asks the proxy for a host; returns the whole answer.
fn ask_host(port: u16, host: &str) -> String {
    let mut stream = Client::connect(port).0;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn sites_behind_one_port_are_woken_by_the_host_that_is_asked_for() {
    let mut served = Served::new();
    let script = served.capture_another("broken");
    let (port, direct) = (served.port, free_port());
    let text = format!(
        "[site.site]\nidle = '300ms'\n[site.broken]\n[site.direct]\nimage = 'site'\nlisten = {direct}\n\
         [proxy]\nlisten = ['127.0.0.1:{port}']\naccess-log = true\n\
         [[proxy.route]]\nsite = 'site'\nhosts = ['site.test']\nhealth-path = '/up'\n\
         [[proxy.route]]\nsite = 'broken'\nhosts = ['broken.test']\n"
    );
    served.start_text(&text, 3);
    assert!(ask_host(port, "nobody.test").starts_with("HTTP/1.1 404"));
    assert_eq!(served.events("woken").len(), 0);
    for answer in ["1", "2"] {
        let found = ask_host(port, "site.test");
        assert!(
            found.starts_with("HTTP/1.1 200") && found.ends_with(answer),
            "{found}"
        );
    }
    served.wait_for("ended", 1);
    // The log tells which wake the first waited for, and the others did not.
    let woken = served.events("woken");
    assert_eq!(woken.len(), 1);
    let log = fs::read_to_string(served.log()).unwrap();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let answered = lines.filter(|line| line["request_id"].is_string() && line["site"] == "site");
    let wakes: Vec<Value> = answered.map(|line| line["wake"].clone()).collect();
    assert_eq!(wakes, [woken[0]["id"].clone(), Value::Null]);
    let top = served.workspace.run(["top"]);
    let mut row = top
        .lines()
        .skip_while(|line| !line.starts_with("BEHIND PROXY"));
    let row: Vec<&str> = row.nth(1).unwrap().split_whitespace().collect();
    assert!(top.lines().count() > 5, "{top}");
    assert_eq!(row, ["broken", "-", "0", "0", "0", "0", "0"], "{top}");

    // Its image does not come back: that is told at once, and when to ask again.
    served.damage("broken");
    fs::remove_file(script).unwrap();
    for _ in 0..3 {
        let found = ask_host(port, "broken.test");
        assert!(found.starts_with("HTTP/1.1 503"), "{found}");
        assert!(
            found.to_ascii_lowercase().contains("retry-after: "),
            "{found}"
        );
    }

    // The proxy is started again if it ends, and taken over by another gateway.
    let processes = served.workspace.processes();
    let is_proxy = |pid: &i32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command == "warmimg\0proxy\0"
    };
    let mut proxies = processes.iter().map(|(pid, _)| *pid).filter(is_proxy);
    let proxy = nix::unistd::Pid::from_raw(proxies.next().unwrap());
    let status = fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    nix::sys::signal::kill(proxy, Signal::SIGKILL).unwrap();
    assert!(ask_host(port, "site.test").ends_with('1'));
    assert_eq!(served.leave(Signal::SIGKILL), None);
    let waiting = thread::spawn(move || ask_host(port, "site.test"));
    served.start_text(&text, 3);
    assert!(waiting.join().unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(ask::get(direct, "/").unwrap(), "200 1");
    served.end();
}
