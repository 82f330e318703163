//! What there is to see of a gateway: traces of wakes, metrics; and limits by the load.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Client, Served};
use crate::{
    exports::check_trace,
    support::{ask, expect, free_port, wait_until},
};

/// The value of a sample.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.map(|value| value.trim().parse().unwrap())
}

fn scrape(port: u16) -> String {
    let metrics = ask::get(port, "/metrics").unwrap();
    metrics.strip_prefix("200 ").unwrap().to_owned()
}

/// Looks at a wake in all forms.
fn look_at(served: &Served, wake: &Value) {
    let id = wake["id"].as_str().unwrap();
    let argument = format!("--wake={id}");
    let text = served.workspace.run(["profile", &argument]);
    assert!(text.contains(&format!("Wake {id} of site: ")), "{text}");
    let (page, trace) = (
        served.workspace.path().join("wake.html"),
        served.workspace.path().join("wake.pftrace"),
    );
    for path in [&page, &trace] {
        let path = path.to_str().unwrap();
        served.workspace.run(["profile", &argument, "-o", path]);
    }
    assert!(fs::read_to_string(page).unwrap().contains(id));
    let found = check_trace(&trace);
    let thread = found["rows"].as_object().unwrap();
    let thread = thread.iter().find(|(name, _)| name.starts_with("thread "));
    let slices = thread.unwrap().1.as_array().unwrap();
    let phases = wake["phases"].as_array().unwrap();
    let named = |slices: &[Value], place: &str| -> Vec<Value> {
        slices.iter().map(|slice| slice[place].clone()).collect()
    };
    let names: Vec<_> = slices.iter().map(|slice| slice[1].clone()).collect();
    assert_eq!(names, named(phases, "name"), "{found}");
}

#[test]
fn the_phases_of_a_wake_can_be_looked_at() {
    let mut served = Served::new();
    served.start("idle = '200ms'");
    let (_, said) = expect(112, &mut served.workspace.warmimg(["profile", "--wake"]));
    assert!(said.contains("the gateway knows of no such wake"), "{said}");
    served.ask();
    served.wait_for("ended", 1);
    let woken = served.events("woken");
    look_at(&served, &woken[0]);
    // The ids of the next gateway are others.
    assert_eq!(served.leave(Signal::SIGTERM), Some(0));
    served.start("standby = 1\nidle = '200ms'");
    served.wait_for_standby();
    served.ask();
    served.wait_for("ended", 2);
    let woken = served.wait_for("woken", 2);
    for (wake, how) in woken.iter().zip(["restored", "standby"]) {
        assert_eq!(wake["how"], how);
        let phases = wake["phases"].as_array().unwrap();
        let mut end = 0;
        for phase in phases {
            assert_eq!(phase["start_us"], end, "{wake}");
            end += phase["length_us"].as_u64().unwrap();
        }
        assert_eq!(wake["took_us"], end, "{wake}");
        let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str()).collect();
        match how {
            "standby" => assert_eq!(names, [Some("thaw")]),
            _ => assert!(names.contains(&Some("criu")), "{wake}"),
        }
    }
    assert_ne!(woken[0]["id"], woken[1]["id"]);
    let last = ["profile", "--wake", "--site", "site", "--json"];
    let last = served.workspace.run(last);
    let last: Value = serde_json::from_str(last.lines().next().unwrap()).unwrap();
    assert_eq!(last["command"][2], woken[1]["id"]);
    served.end();
}

#[test]
fn metrics_tell_what_there_is_and_was() {
    let mut served = Served::new();
    let port = free_port();
    let socket = served.workspace.path().join("metrics.sock");
    let more = format!("[metrics]\nlisten = '127.0.0.1:{port}'");
    served.start_all("idle = '300ms'", &more, 1);
    // Nobody is woken by being looked at.
    let metrics = scrape(port);
    assert_eq!(
        sample(
            &metrics,
            "warmimg_instances{site=\"site\",state=\"serving\"}"
        ),
        Some(0.0)
    );
    // Those who are slow, and more than may read at a time, hold up no site.
    let slow: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "1");
    drop(slow);
    served.wait_for("woken", 1);
    let metrics = scrape(port);
    let woken = "warmimg_wakes_total{site=\"site\",how=\"restored\",cause=\"connection\"}";
    for (name, value) in [
        (woken, 1.0),
        ("warmimg_wake_phase_seconds_count{phase=\"criu\"}", 1.0),
        ("warmimg_instances{site=\"site\",state=\"serving\"}", 1.0),
        ("warmimg_connections_open{site=\"site\"}", 1.0),
        ("warmimg_connections_total{site=\"site\"}", 1.0),
    ] {
        assert_eq!(sample(&metrics, name), Some(value), "{name}\n{metrics}");
    }
    let memory = |kind: &str| {
        let name = format!("warmimg_memory_{kind}_bytes{{site=\"site\",state=\"serving\"}}");
        sample(&metrics, &name).unwrap()
    };
    assert!(
        memory("pss") > 1e6 && memory("rss") >= memory("pss"),
        "{metrics}"
    );
    assert_eq!(memory("rss"), memory("shared") + memory("private"));
    drop(client);
    served.wait_for("ended", 1);
    let ended = "warmimg_instances_ended_total{site=\"site\",cause=\"idle\"}";
    assert_eq!(sample(&scrape(port), ended), Some(1.0));

    let elsewhere = ask::get(port, "/").unwrap_err().to_string();
    assert!(elsewhere.contains("404"), "{elsewhere}");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");

    // Read again, they are elsewhere, and what was counted is there.
    served.configure("", &format!("[metrics]\nlisten = '{}'", socket.display()));
    served.signal(Signal::SIGHUP);
    wait_until("the socket", || match UnixStream::connect(&socket) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(sample(&answer, woken), Some(1.0), "{answer}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    served.end();
}

#[test]
fn an_instance_may_use_more_while_it_is_busy() {
    let mut served = Served::new();
    served
        .start("connections = 2\ncpus = 0.5\nbusy-cpus = 2\nmemory-limit = '512M'\nidle = '300ms'");
    served.ask();
    let limit = |served: &Served| {
        let said = served.workspace.run(["limit", "--json", "site"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["memory_bytes"], 512 << 20);
        said["cpus"].as_f64().unwrap()
    };
    let mut clients = vec![Client::connect(served.port)];
    clients[0].ask();
    assert_eq!(limit(&served), 0.5);
    for _ in 0..2 {
        clients.push(Client::connect(served.port));
    }
    let limited = served.wait_for("limited", 1);
    assert_eq!(
        (&limited[0]["cause"], limit(&served)),
        (&"load".into(), 2.0)
    );
    clients.truncate(1);
    let limited = served.wait_for("limited", 2);
    assert_eq!(
        (&limited[1]["cause"], limit(&served)),
        (&"calm".into(), 0.5)
    );
    assert_eq!(served.events("woken").len(), 1);
    drop(clients);
    served.wait_for("ended", 1);
    served.end();
}
