//! Instances in networks of their own.

use std::{net::SocketAddr, path::Path, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Killed, Workspace, ask, ask::Client, expect, fixture, free_port, server::Server, servers,
    wait_until,
};

/// Restores an image in the background in a network of its own; returns where it is reached.
fn restore_apart(workspace: &Workspace, image: &str, more: &[&str]) -> Vec<SocketAddr> {
    let options = ["--json", "restore", "-d", image, "--net", "private"];
    let report = workspace.run(options.iter().chain(more));
    let addresses = report.lines().flat_map(|line| {
        let copy: Value = serde_json::from_str(line).unwrap();
        copy["listeners"].as_array().unwrap().clone()
    });
    addresses
        .map(|listener| listener["address"].as_str().unwrap().parse().unwrap())
        .collect()
}

/// Waits until the interface is gone that an instance had on the host: the kernel takes it away a
/// while after the namespace.
fn wait_for_interface(address: SocketAddr) {
    let SocketAddr::V4(address) = address else {
        panic!("not by its IPv4 address");
    };
    let [_, _, high, low] = address.ip().octets();
    let number = (u16::from(high) * 256 + u16::from(low)) / 4;
    let path = format!("/sys/class/net/warmimg{number}");
    wait_until("the interface to be gone", || {
        match Path::new(&path).exists() {
            true => Err(format!("{path} is there")),
            false => Ok(()),
        }
    });
}

#[test]
fn copies_with_networks_of_their_own_listen_on_the_same_port() {
    // No other test takes the names of the interfaces as they become free.
    let workspace = Workspace::alone();
    let port = free_port();
    let script = fixture("points/server.py");
    let words = ["/usr/bin/python3", &script, "counting", &port.to_string()];
    let server = Server::new(Client::Http(port), words);
    expect(0, &mut server.capture(&workspace, &["--name", "server"]));
    let mut places = restore_apart(&workspace, "server", &[]);
    places.extend(restore_apart(&workspace, "server", &["--count", "3"]));
    assert_eq!(places.len(), 4);
    for (number, place) in places.iter().enumerate() {
        assert_eq!(place.port(), port);
        assert!(!places[..number].contains(place), "{places:?}");
        for count in 1..=3 {
            assert_eq!(ask::get_at(*place, "/").unwrap(), format!("200 {count}"));
        }
    }
    // Nobody is in the way of a copy in the host's network, nor of the server itself.
    assert!(server.client.is_refused());
    workspace.run(["restore", "-d", "server"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 1");
    let list = workspace.run(["ps"]);
    assert!(list.contains(&format!("tcp:{}", places[0])), "{list}");

    // An image of one that has a network of its own is as good as any.
    workspace.run(["checkpoint", "--pid", "server-1", "--name", "apart"]);
    workspace.run(["stop", "--all"]);
    let again = restore_apart(&workspace, "apart", &[]);
    assert_eq!(ask::get_at(again[0], "/").unwrap(), "200 4");
    workspace.run(["stop", "--all"]);
    workspace.run(["restore", "-d", "apart"]);
    assert_eq!(ask::get(port, "/").unwrap(), "200 4");
    workspace.run(["stop", "--all"]);
    for place in places.into_iter().chain(again) {
        wait_for_interface(place);
    }
    workspace.assert_clean();
}

#[test]
fn listeners_move_and_hooks_ask_in_a_network_of_its_own() {
    let workspace = Workspace::alone();
    let server = servers::express();
    let Client::Http(port) = server.client else {
        panic!("not by HTTP");
    };
    expect(
        0,
        &mut server.capture(&workspace, &["--at", "pre-listen", "--name", "express"]),
    );
    let publish = format!("81:{port}");
    let places = restore_apart(
        &workspace,
        "express",
        &["--publish", &publish, "--after-restore", "get:/"],
    );
    assert_eq!(places[0].port(), 81);
    assert!(ask::get_at(places[0], "/").is_ok());
    workspace.run(["stop", "--all"]);

    // It ends with a killed supervisor.
    let mut command = workspace.warmimg(["restore", "express", "--net", "private"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut supervisor = Killed(command.spawn().unwrap());
    let mut place = None;
    wait_until("the instance", || {
        let line = workspace.run(["--json", "ps"]);
        let record: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        place = record["listeners"][0]["address"]
            .as_str()
            .map(str::to_owned);
        Ok(())
    });
    let place: SocketAddr = place.unwrap().parse().unwrap();
    assert!(ask::get_at(place, "/").is_ok());
    supervisor.signal(Signal::SIGKILL);
    supervisor.wait();
    wait_for_interface(place);
    workspace.run(["restore", "-d", "express"]);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}

#[test]
fn what_makes_no_sense_in_a_network_of_its_own_is_refused() {
    let workspace = Workspace::new();
    let peer = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ports = [free_port(), peer.local_addr().unwrap().port()].map(|port| port.to_string());
    let script = fixture("points/server.py");
    let words = ["/usr/bin/python3", &script, "client", &ports[0], &ports[1]];
    let server = Server::new(Client::Http(ports[0].parse().unwrap()), words);
    let options = ["--tcp-established", "--name", "client"];
    expect(0, &mut server.capture(&workspace, &options));
    let error = workspace.fail(116, ["restore", "-d", "client", "--net", "private"]);
    assert!(
        error.contains("cannot go on in another network") && error.contains("--tcp-close"),
        "{error}"
    );
    let error = workspace.fail(2, ["restore", "-d", "client", "--count", "2"]);
    assert!(
        error.contains("--reuse-port") && error.contains("--net private"),
        "{error}"
    );
    let error = workspace.fail(2, ["restore", "client", "--net", "nowhere"]);
    assert!(error.contains("invalid value 'nowhere'"), "{error}");
    workspace.assert_clean();
}
