//! What goes on when a gateway ends, and when it is configured anew.

use std::{fs, net::TcpStream, path::Path, thread};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{Client, Served};
use crate::support::{ask, describe, expect, fixture, free_port, wait_until};

#[test]
fn another_gateway_takes_over_sockets_and_instances() {
    let mut served = Served::new();
    let asleep = free_port();
    let more = format!("[site.other]\nlisten = {asleep}\nimage = 'site'");
    served.start_all("", &more, 2);
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "1");
    // It answers before the gateway has let it go.
    served.wait_for("woken", 1);
    for signal in [Signal::SIGKILL, Signal::SIGUSR2] {
        let (before, listening) = (
            served.events("adopted").len(),
            served.events("listening").len(),
        );
        let code = served.leave(signal);
        assert_eq!(code, (signal == Signal::SIGUSR2).then_some(0));
        // What is awake goes on, and what is asleep waits for the next gateway.
        let answered: u32 = client.ask().parse().unwrap();
        assert_eq!(served.ask(), format!("200 {}", answered + 1));
        let waiting = thread::spawn(move || ask::get(asleep, "/"));
        wait_until("the connection to wait", || {
            let text = fs::read_to_string("/proc/net/tcp").unwrap();
            let port = format!("0100007F:{asleep:04X} ");
            match text
                .lines()
                .any(|line| line.contains(&format!(": {port}")) && line.contains(" 01 "))
            {
                true => Ok(()),
                false => Err(text),
            }
        });
        served.start_all("", &more, 2);
        assert_eq!(served.events("listening").len(), listening + 2);
        let adopted = served.wait_for("adopted", before + 1);
        assert_eq!(adopted[before]["instance"], "site-1");
        assert_eq!(waiting.join().unwrap().unwrap(), "200 1");
        served.workspace.run(["wake", "other"]);
        assert_eq!(client.ask(), (answered + 2).to_string());
        // It is known that it has a connection still.
        let (_, said) = expect(100, &mut served.workspace.warmimg(["sleep", "site"]));
        assert!(said.contains("site: it has connections"), "{said}");
        served.workspace.run(["sleep", "other"]);
    }
    drop(client);
    wait_until("the site to be free", || {
        match served
            .workspace
            .warmimg(["sleep", "site"])
            .output()
            .unwrap()
        {
            output if output.status.success() => Ok(()),
            output => Err(describe(&output)),
        }
    });
    served.end();
}

#[test]
fn what_is_to_end_does_so_under_another_gateway() {
    let mut served = Served::new();
    let captured = free_port();
    served.capture_asynchronous(captured, "0");
    let site = "idle = 'never'\ndrain = '60s'\nrecapture = false";
    served.start(site);
    let mut client = Client::connect(served.port);
    client.ask();
    served.wait_for("woken", 1);
    served.capture_asynchronous(captured, "1000");
    served.signal(Signal::SIGHUP);
    let is_leaving = |served: &Served| {
        wait_until("the first to leave", || {
            let status = served.status();
            let (serving, leaving) = (&status["serving"], &status["leaving"]);
            match (serving, leaving) == (&json!(["site-2"]), &json!(["site-1"])) {
                true => Ok(()),
                false => Err(status.to_string()),
            }
        });
    };
    is_leaving(&served);
    for (number, signal) in [(1, Signal::SIGKILL), (2, Signal::SIGUSR2)] {
        served.leave(signal);
        served.start(site);
        let adopted = served.wait_for("adopted", number);
        assert_eq!(adopted.len(), number, "{adopted:?}");
        is_leaving(&served);
        assert!(client.ask().parse::<u32>().unwrap() < 1000);
        assert!(Client::connect(served.port).ask().parse::<u32>().unwrap() > 1000);
    }
    drop(client);
    let ended = served.wait_for("ended", 1);
    let first = (&ended[0]["instance"], &ended[0]["cause"]);
    assert_eq!(first, (&"site-1".into(), &"image".into()));
    served.end();
}

#[test]
fn files_of_sockets_go_with_what_listened_there() {
    let mut served = Served::new();
    let place = |name: &str| served.workspace.path().join(name);
    let [site, first, second] = ["site.sock", "first.sock", "second.sock"].map(place);
    let own = place("reader.sock").display().to_string();
    let text = served.workspace.write("text", "1");
    let script = fixture("plain/reader.py");
    let words = ["capture", "--name", "reader", "--", "/usr/bin/python3"];
    let words = words.into_iter().chain([&*script, &own, &text]);
    served.workspace.run(words);
    let config = |name: &str, metrics: &Path| {
        let (site, metrics) = (site.display(), metrics.display());
        let site = format!("[site.{name}]\nimage = 'reader'\nlisten = '{site}'");
        format!("{site}\n[metrics]\nlisten = '{metrics}'\n")
    };
    served.start_text(&config("before", &first), 1);
    let exist = || [&site, &first, &second].map(|file| file.exists());
    assert_eq!(exist(), [true, true, false]);
    // Another site at the same place, and the metrics at another.
    served
        .workspace
        .write("serve.toml", &config("after", &second));
    served.signal(Signal::SIGHUP);
    served.wait_for("listening", 2);
    wait_until("the old file to go", || match exist() {
        [true, false, true] => Ok(()),
        found => Err(format!("{found:?}")),
    });
    let answer = ask::Client::HttpOverUnix(site.clone()).ask();
    assert_eq!(answer.unwrap(), "200 1");
    assert_eq!(served.leave(Signal::SIGUSR2), Some(0));
    assert_eq!(exist(), [true, false, false]);
    served.start_text(&config("after", &second), 1);
    assert_eq!(served.leave(Signal::SIGTERM), Some(0));
    assert_eq!(exist(), [false; 3]);
    served.workspace.assert_clean();
}

#[test]
fn a_configuration_is_read_again() {
    let mut served = Served::new();
    served.start("idle = 'never'");
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "1");
    let (other, old) = (free_port(), served.port);
    served.configure(
        "idle = '200ms'",
        &format!("[site.other]\nlisten = {other}\nimage = 'site'"),
    );
    served.signal(Signal::SIGHUP);
    served.wait_for("listening", 2);
    assert_eq!(ask::get(other, "/").unwrap(), "200 1");
    assert_eq!(client.ask(), "2");

    // What is wrong is told, and changes nothing.
    served.configure("idel = 1", "");
    served.signal(Signal::SIGHUP);
    wait_until("a complaint", || {
        let log = fs::read_to_string(served.log()).unwrap();
        match log.contains("unknown field `idel`") {
            true => Ok(()),
            false => Err(log),
        }
    });
    assert_eq!(client.ask(), "3");

    // A site that moves is ended at its old place, and one that is gone too.
    served.port = free_port();
    served.configure("idle = '200ms'", "");
    served.signal(Signal::SIGHUP);
    served.wait_for("listening", 3);
    assert_eq!(served.ask(), "200 1");
    for port in [old, other] {
        wait_until("the old socket to end", || {
            match TcpStream::connect(("127.0.0.1", port)) {
                Err(_) => Ok(()),
                Ok(_) => Err(port.to_string()),
            }
        });
    }
    served.end();
}
