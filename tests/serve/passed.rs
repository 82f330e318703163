//! Listening sockets that a service manager passes.

use std::{fs, net::TcpStream, process::Command};

use nix::sys::signal::Signal;

use super::Served;
use crate::support::{ask, expect, free_port};

/// Opens a socket at each of these ports, and executes the rest of its arguments with them.
const MANAGER: &str = r#"
import os, socket, sys
pid, names, ports, words = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4:]
for place, port in enumerate(ports):
    listening = socket.create_server(("127.0.0.1", int(port)))
    os.dup2(listening.fileno(), 100 + place)
for place, port in enumerate(ports):
    os.dup2(100 + place, 3 + place)
    os.close(100 + place)
os.environ["LISTEN_PID"] = str(os.getpid()) if pid == "own" else pid
os.environ["LISTEN_FDS"] = str(len(ports))
os.environ["LISTEN_FDNAMES"] = names
os.execvp(words[0], words)
"#;

/// Starts the gateway with sockets at these ports.
fn start(served: &mut Served, pid: &str, names: &str, ports: &[u16], config: &str) {
    let script = served.workspace.write("manager.py", MANAGER);
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let mut command = Command::new("/usr/bin/python3");
    command.args([&script, pid, names, &ports.join(",")]);
    served.start_by(command, config);
}

/// How many sockets listen at a port.
fn listens(port: u16) -> usize {
    let text = fs::read_to_string("/proc/net/tcp").unwrap();
    let address = format!(": 0100007F:{port:04X} ");
    let listening = |line: &&str| line.contains(&address) && line.contains(" 0A ");
    text.lines().filter(listening).count()
}

#[test]
fn sockets_are_taken_by_their_names_and_by_their_places() {
    let mut served = Served::new();
    let (named, placed, unused) = (free_port(), free_port(), free_port());
    // The site's own place is another: what is called as it is taken all the same.
    let more = format!("[site.placed]\nlisten = {placed}\nimage = 'site'\nidle = '200ms'");
    let config = served.configure("idle = '200ms'", &more);
    let ports = [named, placed, unused];
    start(
        &mut served,
        "own",
        "site:warmimg.socket:other",
        &ports,
        &config,
    );
    let listening = served.wait_for("listening", 2);
    let at = |site: &str| {
        let event = listening.iter().find(|event| event["site"] == site);
        event.unwrap()["listener"]["address"].clone()
    };
    assert_eq!(at("site"), format!("127.0.0.1:{named}"));
    assert_eq!(at("placed"), format!("127.0.0.1:{placed}"));
    let unfit = served.wait_for("unused", 1);
    assert_eq!(unfit[0]["site"], "other");
    assert_eq!(
        unfit[0]["listener"]["address"],
        format!("127.0.0.1:{unused}")
    );
    for port in [named, placed] {
        assert_eq!(ask::get(port, "/").unwrap(), "200 1");
    }
    assert!(TcpStream::connect(("127.0.0.1", served.port)).is_err());
    // No copy of one is left anywhere, neither of those that are used nor of that which is not.
    assert_eq!([listens(named), listens(unused)], [1, 0]);
    served.wait_for("ended", 2);

    // Another gateway goes on with them; a passed one is the same socket again.
    assert_eq!(served.leave(Signal::SIGUSR2), Some(0));
    served.start_with(&config, 2);
    assert_eq!(ask::get(placed, "/").unwrap(), "200 1");
    assert_eq!(served.leave(Signal::SIGTERM), Some(0));
    assert_eq!([listens(named), listens(placed)], [0, 0]);
    served.workspace.assert_clean();
}

#[test]
fn sockets_of_the_proxy_are_taken_by_their_places_alone() {
    let mut served = Served::new();
    let [own, passed] = [free_port(), free_port()];
    let more = format!(
        "[proxy]\nlisten = ['127.0.0.1:{own}', '127.0.0.1:{passed}']\n\
         [[proxy.route]]\nsite = 'site'\n"
    );
    let config = served.configure("", &more);
    start(&mut served, "own", "proxy", &[passed], &config);
    served.wait_for("listening", 1);
    for (port, answer) in [(own, "200 1"), (passed, "200 2")] {
        assert_eq!(ask::get(port, "/").unwrap(), answer);
    }
    assert_eq!(served.events("unused").len(), 0);
    served.end();
}

#[test]
fn what_was_passed_to_another_process_is_left_alone() {
    let mut served = Served::new();
    let config = served.configure("", "");
    let elsewhere = free_port();
    start(&mut served, "1", "site", &[elsewhere], &config);
    let listening = served.wait_for("listening", 1);
    let address = format!("127.0.0.1:{}", served.port);
    assert_eq!(listening[0]["listener"]["address"], address);
    assert_eq!(served.ask(), "200 1");
    assert_eq!(served.events("unused").len(), 0);
    assert_eq!(served.leave(Signal::SIGTERM), Some(0));

    let mut command = served.workspace.warmimg(["serve", "-c", &config]);
    command.env("LISTEN_PID", "many").env("LISTEN_FDS", "1");
    let (_, said) = expect(2, &mut command);
    assert!(said.contains("LISTEN_FDS"), "{said}");
    served.workspace.assert_clean();
}
