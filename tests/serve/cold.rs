//! Sites whose images are stale or work no more.

use std::{
    fs::{self, Permissions},
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{Client, SERVER, Served};
use crate::support::{Workspace, ask, expect, fixture, free_port, servers, wait_until};

#[test]
fn a_stale_image_is_captured_again_and_rolled_in() {
    let mut served = Served::new();
    let text = served.workspace.write("text", "1");
    let script = fixture("plain/reader.py");
    let captured = free_port().to_string();
    let words = ["capture", "--name", "reader", "--", "/usr/bin/python3"];
    let words = words.into_iter().chain([&*script, &captured, &text]);
    served.workspace.run(words);
    let port = served.port;
    let site = format!("[site.reader]\nlisten = {port}\nidle = '200ms'\nstandby = 1");
    served.start_text(&site, 1);
    served.wait_for_standby();
    fs::write(&text, "two").unwrap();
    // One that stands by was restored before.
    let mut client = Client::connect(port);
    assert_eq!(client.ask(), "1");
    let stale = served.wait_for("stale", 1);
    let findings = &stale[0]["findings"];
    assert_eq!(findings[0]["code"], "read-changed", "{findings}");
    served.wait_for("recaptured", 1);
    // The connection that there is stays, new ones are for the new image.
    wait_until("the new image", || match served.ask() {
        answer if answer == "200 two" => Ok(()),
        answer => Err(answer),
    });
    assert_eq!(client.ask(), "1");
    drop(client);
    wait_until("the old instances to end", || {
        let ended = served.events("ended");
        // That which stood by, and that which served.
        match ended
            .iter()
            .filter(|event| event["cause"] == "image")
            .count()
            == 2
        {
            true => Ok(()),
            false => Err(format!("{ended:?}")),
        }
    });
    assert_eq!(served.ask(), "200 two");
    // Nobody has asked for another image, so the old one goes.
    wait_until("the old image to go", || {
        let images = fs::read_dir(served.workspace.store().join("images"));
        match images.unwrap().count() {
            2 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    served.end();
}

#[test]
fn a_new_image_takes_all_new_connections() {
    let mut served = Served::new();
    let captured = free_port();
    served.capture_asynchronous(captured, "0");
    served.start("drain = '20s'\nrecapture = false");
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "1");
    served.wait_for("woken", 1);
    served.capture_asynchronous(captured, "1000");
    served.signal(Signal::SIGHUP);
    let woken = served.wait_for("woken", 2);
    assert_eq!(woken[1]["cause"], "image");
    wait_until("the old one to take no more", || {
        // Both take some until that is told.
        let answers = (0..10).map(|_| Client::connect(served.port).ask());
        let answers: Vec<u32> = answers.map(|answer| answer.parse().unwrap()).collect();
        match answers.iter().all(|&answer| answer > 1000) {
            true => Ok(()),
            false => Err(format!("{answers:?}")),
        }
    });
    for number in 2..=30 {
        // Those that there are stay, and all others are for the new one.
        assert!(Client::connect(served.port).ask().parse::<u32>().unwrap() > 1000);
        assert!(client.ask().parse::<u32>().unwrap() < 1000, "{number}");
    }
    assert!(served.events("ended").is_empty());
    drop(client);
    let ended = served.wait_for("ended", 1);
    assert_eq!(ended[0]["cause"], "image");
    served.end();
}

#[test]
fn an_image_that_fails_twice_is_captured_again() {
    let mut served = Served::new();
    served.damage("site");
    served.start("idle = '100ms'");
    for number in 1..=3 {
        assert_eq!(served.ask(), "200 1");
        served.wait_for("ended", number);
    }
    let reasons: Vec<_> = served.events("cold").into_iter().collect();
    let reasons: Vec<_> = reasons.iter().map(|event| &event["reason"]).collect();
    let (failed, quarantined) = ("restore-failed", "quarantined");
    assert_eq!(reasons, [failed, failed, quarantined]);
    served.wait_for("recaptured", 1);
    assert_eq!(served.ask(), "200 1");
    assert_eq!(served.events("cold").len(), 3);
    served.end();
}

#[test]
fn a_server_has_the_limit_of_files_that_the_gateway_was_started_with() {
    let mut served = Served::new();
    let script = SERVER.replace("text = str(asked)", "text = str(limit())");
    let limit = "import resource\nlimit = lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]\n";
    served
        .workspace
        .write("server.py", &format!("{limit}{script}"));
    served.damage("site");
    let config = served.configure("idle = '100ms'", "");
    let mut limited = Command::new("/usr/bin/prlimit");
    limited.arg("--nofile=500:");
    served.start_by(limited, &config);
    served.wait_for("listening", 1);
    for number in 1..=3 {
        assert_eq!(served.ask(), "200 500");
        served.wait_for("ended", number);
    }
    assert_eq!(served.events("cold").len(), 3);
    served.wait_for("recaptured", 1);
    assert_eq!(served.ask(), "200 500");
    assert_eq!(served.events("cold").len(), 3);
    served.end();
}

#[test]
fn a_site_that_is_told_not_to_is_not_captured_again() {
    let mut served = Served::new();
    served.damage("site");
    served.start("idle = '100ms'\nrecapture = false");
    for number in 1..=3 {
        assert_eq!(served.ask(), "200 1");
        served.wait_for("ended", number);
    }
    // As long as the site is up, there is nothing of it but the instance.
    let mut client = Client::connect(served.port);
    assert_eq!(client.ask(), "1");
    let woken = served.wait_for("woken", 4);
    let phases = woken[3]["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].clone()).collect();
    assert_eq!(
        (&woken[3]["how"], &names[..]),
        (&"cold".into(), &["failed".into(), "cold".into()][..])
    );
    let instances = served.workspace.run(["ps", "--json"]);
    assert!(instances.contains(woken[3]["instance"].as_str().unwrap()));
    assert!(instances.contains("\"image\":null"), "{instances}");
    drop(client);
    served.wait_for("ended", 4);
    assert!(served.events("recaptured").is_empty() && served.events("not-recaptured").is_empty());
    served.end();
}

/// Takes its time to start and does not end when it is asked to.
const SLOW: &str = r#"
import http.server, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// Captures it as the image `site`.
fn capture_slow(served: &Served, captured: u16) {
    let script = served.workspace.write("slow.py", SLOW);
    let words = ["capture", "--name", "site", "--", "/usr/bin/python3"];
    let captured = captured.to_string();
    let words = words.into_iter().chain([&*script, &captured]);
    served.workspace.run(words);
}

#[test]
fn what_comes_up_cold_while_the_gateway_ends_is_ended_too() {
    let mut served = Served::new();
    capture_slow(&served, free_port());
    served.damage("site");
    served.start("grace = '3s'\nconnections = 1\nmax = 2\nrecapture = false");
    let connect = || TcpStream::connect(("127.0.0.1", served.port)).unwrap();
    let _first = connect();
    served.wait_for("woken", 1);
    // It serves on, while another one is started and after.
    let _second = connect();
    served.wait_for("cold", 2);
    served.end();
}

#[test]
fn no_site_waits_for_the_end_of_what_stands_by() {
    let mut served = Served::new();
    let captured = free_port();
    capture_slow(&served, captured);
    served.start("grace = '30s'\nstandby = 1\nrecapture = false");
    served.wait_for_standby();
    capture_slow(&served, captured);
    served.signal(Signal::SIGHUP);
    served.wait_for("ended", 1);
    let begun = Instant::now();
    served.wait_for_standby();
    assert!(begun.elapsed() < Duration::from_secs(15), "{begun:?}");
    served.end();
}

#[test]
fn a_server_is_captured_again_beside_its_instance() {
    let workspace = Workspace::new();
    let text = workspace.write("text", "1");
    let script = fixture("plain/reader.py");
    let port = free_port();
    let socket = workspace.path().join("reader.sock");
    let (tcp, unix) = (port.to_string(), socket.to_str().unwrap());
    let url = format!("http://127.0.0.1:{port}/");
    let warm = ["--at", "warm", "--warmup", &url, "--listener", &tcp];
    let get = |place: &str| match place == unix {
        true => ask::Client::HttpOverUnix(socket.clone()).ask(),
        false => ask::get(port, "/"),
    };
    for (place, options) in [(&*tcp, &warm[..]), (unix, &[])] {
        fs::write(&text, "1").unwrap();
        let words = ["capture", "--name", "reader"].into_iter();
        let words = words.chain(options.iter().copied());
        let command = ["--", "/usr/bin/python3", &script, place, &text];
        workspace.run(words.chain(command));
        workspace.run(["restore", "-d", "reader"]);
        assert_eq!(get(place).unwrap(), "200 1");
        for again in ["2", "3"] {
            fs::write(&text, again).unwrap();
            workspace.run(["recapture", "reader"]);
            assert_eq!(get(place).unwrap(), "200 1");
        }
        workspace.run(["stop", "--all"]);
        workspace.run(["restore", "-d", "reader"]);
        assert_eq!(get(place).unwrap(), "200 3");
        let inspected = workspace.run(["inspect", "reader"]);
        assert!(inspected.contains(&format!("{place}\n")), "{inspected}");
        workspace.run(["stop", "--all"]);
    }
    let files = fs::read_dir(workspace.path()).unwrap().flatten();
    let files: Vec<_> = files.map(|file| file.file_name()).collect();
    let is_aside = |name: &&std::ffi::OsString| name.to_string_lossy().contains("reader.sock.");
    assert_eq!(files.iter().find(is_aside), None);
    workspace.assert_clean();
}

#[test]
fn the_file_of_a_socket_is_as_the_server_makes_it() {
    let workspace = Workspace::new();
    let file = workspace.path().join("server.sock");
    let user = nix::unistd::User::from_name("www-data").unwrap().unwrap();
    let look = || {
        let file = fs::metadata(&file).unwrap();
        (file.mode() & 0o7777, file.uid(), file.gid())
    };
    for (server, expected) in [
        (servers::uvicorn_on_a_unix_socket(&workspace), (0o666, 0, 0)),
        (
            servers::gunicorn_on_a_unix_socket(&workspace),
            (0o770, user.uid.as_raw(), user.gid.as_raw()),
        ),
    ] {
        expect(0, &mut server.capture(&workspace, &["--name", "server"]));
        server.wait_for_silence();
        let _ = fs::remove_file(&file);
        workspace.run(["recapture", "server"]);
        assert!(!file.exists());
        workspace.run(["restore", "-d", "server"]);
        assert_eq!(look(), expected);
        server.client.ask().unwrap();

        // That of an instance that is there stays as it is.
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        chown(&file, Some(0), Some(0)).unwrap();
        workspace.run(["recapture", "server"]);
        assert_eq!(look(), (0o600, 0, 0));
        workspace.run(["stop", "--all"]);
    }
    workspace.assert_clean();
}

#[test]
fn what_cannot_be_captured_again_is_refused() {
    let workspace = Workspace::new();
    let script = workspace.write("server.py", SERVER);
    let port = free_port().to_string();
    let words = ["capture", "--name", "server", "--", "/usr/bin/python3"];
    workspace.run(words.into_iter().chain([&*script, &port]));
    workspace.run(["restore", "-d", "server"]);
    workspace.run(["checkpoint", "--name", "later", "--pid", "server-1"]);
    for (name, code, complaint) in [
        ("nobody", 107, "no image is called \"nobody\""),
        ("later", 2, "later was not captured from its start"),
    ] {
        let (_, said) = expect(code, &mut workspace.warmimg(["recapture", name]));
        assert!(said.contains(complaint), "{said}");
    }
    // What it was started by is gone: the image stays.
    fs::remove_file(&script).unwrap();
    let (_, said) = expect(102, &mut workspace.warmimg(["recapture", "server"]));
    assert!(said.contains("ended before"), "{said}");
    workspace.run(["restore", "-d", "server"]);
    workspace.run(["stop", "--all"]);
    workspace.assert_clean();
}
