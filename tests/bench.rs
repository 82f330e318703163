//! `warmimg bench`: right figures, and no mess when a server fails.

use std::{fs, path::Path, process::Command};

use nix::sys::signal::Signal;
use serde_json::Value;
use warmimg::bench::{
    Results,
    results::{SubjectKind, Timing},
};

use crate::support::{Killed, Workspace, expect, free_port, server::Server, servers};

/// What may be wrong about a figure.
const TOLERANCE: f64 = 0.03;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn assert_within(what: &str, found: f64, known: f64) {
    let error = found / known - 1.0;
    assert!(
        error.abs() <= TOLERANCE,
        "{what}: {found:.1}, known {known:.1}: {:+.1} %",
        error * 100.0
    );
}

#[test]
fn known_costs_are_measured_to_3_percent() {
    const MIB: u64 = 1 << 20;
    let workspace = Workspace::alone();
    let file = workspace.write("50-megabytes", "");
    fs::File::create(&file)
        .unwrap()
        .set_len(50_000_000)
        .unwrap();
    let report = workspace.path().join("report").display().to_string();
    let costs = [
        "busy=200",
        "sleep=100",
        &format!("read={file}"),
        "touch=64",
        &format!("report={report}"),
    ];
    let server = servers::accept_loop(&workspace, &costs);
    let stored = workspace.path().join("results.json").display().to_string();
    let options = ["--runs", "9", "--requests", "5", "--export-json", &stored];
    expect(0, &mut server.bench(&workspace, &options));

    // The server's own clock knows what reading and touching took, and what was stolen from it.
    let own = fs::read_to_string(&report).unwrap();
    let own: Vec<Vec<f64>> = own
        .lines()
        .map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect())
        .collect();
    // One for the capture and one for the run to warm up come first.
    assert_eq!(own.len(), 11);
    let own = |column: usize| own[2..].iter().map(move |line| line[column] / 1e6);
    assert!(
        own(0).all(|time| time >= 300.0),
        "the busy loop and the sleep alone are 300 ms"
    );

    let results = Results::read(Path::new(&stored)).unwrap();
    let cold = results.cold().unwrap();
    // Run by run, as reading and touching take a different time in each.
    let within = |what: &str, found: Vec<f64>, known: &mut dyn Iterator<Item = f64>| {
        let ratios: Vec<f64> = found.into_iter().zip(known).map(|(f, k)| f / k).collect();
        assert_eq!(ratios.len(), 9);
        assert_within(what, median(ratios) * 100.0, 100.0);
    };
    for timing in Timing::ALL {
        within(&timing.label(5), cold.times(timing), &mut own(0));
    }
    let cpu = cold
        .samples
        .iter()
        .map(|sample| sample.usage.cpu_ns as f64 / 1e6);
    within("CPU time", cpu.collect(), &mut own(1));
    assert_within("read", cold.median_usage(|used| used.read_bytes), 50e6);
    let mib = |part| cold.median_usage(part) / MIB as f64;
    assert_within("peak RSS", mib(|used| used.peak_rss_bytes), 64.0 + 1.0);
    assert_within("PSS", mib(|used| used.pss_bytes), 64.0 + 1.0);
    assert_within(
        "page faults",
        cold.median_usage(|used| used.minor_faults),
        16384.0 + 256.0,
    );

    // Restored, none of it is done again.
    let restored = &results.subjects[1];
    assert!(restored.median(Timing::FirstResponse).value < 100.0);
    assert!(
        results.surroundings.client_cpu_share < 0.25,
        "it burns the processor"
    );
    workspace.assert_clean();
}

#[test]
fn points_and_baselines_are_compared_and_exported() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    let path = |name: &str| workspace.path().join(name).display().to_string();
    let baseline = server.command.join(" ");
    let (json, markdown) = (path("start.json"), path("start.md"));
    let (svg, html) = (path("start.svg"), path("start.html"));
    let mut options = vec!["--runs", "2", "--at", "ready,listen", "--drop-caches"];
    options.extend(["--baseline", "criu", "--baseline", &baseline]);
    options.extend(["--export-json", &json, "--export-markdown", &markdown]);
    options.extend(["--export-svg", &svg, "--export-html", &html]);
    let (report, _) = expect(0, &mut server.bench(&workspace, &options));
    let names = [
        "cold start",
        "restored at ready",
        "restored at listen",
        "criu restore at ready",
        "criu restore at listen",
        &baseline,
    ];
    let read = |path: &str| fs::read_to_string(path).unwrap();
    for text in [&report, &read(&markdown), &read(&html)] {
        for name in names {
            assert!(text.contains(name), "{name} is not in {text}");
        }
    }
    assert!(report.contains("Warning: 2 runs are too few"), "{report}");
    assert!(read(&svg).starts_with("<svg ") && read(&html).contains("<svg "));

    let results = Results::read(Path::new(&json)).unwrap();
    let found: Vec<String> = results
        .subjects
        .iter()
        .map(|s| s.kind.to_string())
        .collect();
    assert_eq!(found, names);
    for subject in &results.subjects {
        assert_eq!(subject.samples.len(), 2);
        for sample in &subject.samples {
            assert!(sample.listening_ns > 0 && sample.listening_ns < sample.first_byte_ns);
            assert!(sample.first_byte_ns <= sample.first_response_ns);
            assert!(sample.first_response_ns < sample.last_response_ns);
            assert!(sample.usage.cpu_ns > 0 && sample.usage.pss_bytes > 0);
        }
        let is_restored = subject.kind.to_string().contains("restore");
        assert_eq!(subject.image.is_some(), is_restored);
        // Only warmimg tells where the time went, from the fork of the program on.
        let is_ours = matches!(subject.kind, SubjectKind::Restored { .. });
        for sample in &subject.samples {
            assert_eq!(sample.timings.is_some(), is_ours);
            let Some(parts) = sample.timings else {
                continue;
            };
            let sum: u64 = parts.rows().iter().filter_map(|(_, time)| *time).sum();
            assert_eq!(sum, parts.total_us);
            assert!(parts.process_us > Some(0) && parts.criu_start_us > Some(0));
        }
    }
    for text in [&report, &read(&markdown), &read(&html)] {
        let sentence = "restored at ready, until warmimg has it back: start of warmimg ";
        assert!(text.contains(sentence), "{text}");
    }
    // Without a page cache, something comes from storage.
    assert!(results.subjects[1].median_usage(|used| used.storage_bytes) > 0.0);
    let stored: Value = serde_json::from_str(&read(&json)).unwrap();
    assert_eq!(stored["summary"].as_array().unwrap().len(), names.len() * 4);
    workspace.assert_clean();
}

#[test]
fn an_image_is_measured_against_the_command_it_came_from() {
    let workspace = Workspace::new();
    let server = servers::express();
    expect(0, &mut server.capture(&workspace, &["--name", "shop"]));
    // The environment comes from the image.
    let mut bench = workspace.warmimg(["--json", "bench", "--image", "shop", "-n", "2"]);
    let (line, _) = expect(0, &mut bench);
    let results: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&results["type"], &results["schema"]),
        (&"bench".into(), &1.into())
    );
    assert_eq!(results["command"][0], "node");
    assert_eq!(results["subjects"][1]["subject"], "restored");
    assert_eq!(
        results["subjects"][1]["samples"].as_array().unwrap().len(),
        2
    );
    assert!(results["summary"][4]["speed_up"]["value"].as_f64().unwrap() > 1.0);
    // The image is still there.
    workspace.run(["inspect", "shop"]);
    workspace.assert_clean();
}

#[test]
fn other_protocols_and_unix_sockets_are_asked() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    let port = &server.command[1];
    let url = format!("tcp://127.0.0.1:{port}");
    let mut options = vec!["-n", "1", "--url", &url, "--send", r"PING\r\n"];
    let (report, _) = expect(0, &mut server.bench(&workspace, &options));
    assert!(report.contains(&format!("asked: {url}")), "{report}");

    let unix = servers::uvicorn_on_a_unix_socket(&workspace);
    options = vec!["-n", "1"];
    let (report, _) = expect(0, &mut unix.bench(&workspace, &options));
    assert!(report.contains("server.sock:/"), "{report}");
    workspace.assert_clean();
}

/// A server that ends at once when it is started for the `number`th time.
fn dies_at(workspace: &Workspace, number: u32) -> Server {
    let server = servers::accept_loop(workspace, &[]);
    let script = workspace.write(
        "dies.sh",
        &format!(
            "echo x >> starts; test $(wc -l < starts) -lt {number} || \
             {{ echo 'no licence left' >&2; exit 7; }}; exec {}",
            server.command.join(" ")
        ),
    );
    Server::new(server.client, ["sh", &script])
}

#[test]
fn a_server_that_dies_is_reported_with_its_run_and_nothing_is_half_written() {
    let workspace = Workspace::new();
    // The capture, the run to warm up and the first run go well.
    let server = dies_at(&workspace, 4);
    let before = listing(workspace.path());
    let options = [
        "-n",
        "3",
        "--export-json",
        "a.json",
        "--export-html",
        "a.html",
    ];
    let (report, error) = expect(102, &mut server.bench(&workspace, &options));
    assert_eq!(report, "");
    assert_eq!(
        error,
        "Error: run 2 of 3 (cold start) failed\n\
         Caused by:\n    it ended before it had answered: exit status 7\n\
         Last lines of its output:\n    no licence left\n\
         Hint: start it by hand to see whether it runs; a command must find its port and files \
         free again each time\n"
    );
    let mut after = listing(workspace.path());
    after.retain(|name| name != "starts" && name != "store");
    assert_eq!(after, before);
    workspace.assert_clean();
}

fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &["answer=100000"]);
    let options = ["-n", "1", "--timeout", "1"];
    let (_, error) = expect(103, &mut server.bench(&workspace, &options));
    assert!(
        error.starts_with("Error: run 1 of 1 (cold start, to warm up) failed\n")
            && error.contains(" within 1 s\n")
            && error.contains("Hint: check what is asked with --url"),
        "{error}"
    );
    // Nothing listens where it is asked.
    let url = format!("http://127.0.0.1:{}/", free_port());
    let options = ["-n", "1", "--timeout", "1", "--url", &url];
    let server = servers::accept_loop(&workspace, &[]);
    let (_, error) = expect(103, &mut server.bench(&workspace, &options));
    assert!(error.contains("Connection refused"), "{error}");
    workspace.assert_clean();
}

#[test]
fn an_unexpected_answer_is_an_error() {
    let workspace = Workspace::new();
    let server = servers::express();
    let (_, port) = &server.environment[0];
    let url = format!("http://127.0.0.1:{port}/nothing-here");
    let options = ["-n", "1", "--url", &url];
    let (_, error) = expect(114, &mut server.bench(&workspace, &options));
    assert!(
        error.contains("nothing-here answered with status 404, not 200 to 399\n")
            && error.contains("or expect it with --status 404"),
        "{error}"
    );
    let options = ["-n", "1", "--url", &url, "--status", "404"];
    expect(0, &mut server.bench(&workspace, &options));
    // What is no HTTP is named so, and not asked again and again.
    let port = free_port();
    let script = "import socket, sys\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
                  while True:\n    c = s.accept()[0]\n    c.sendall(b'220 mail.example\\r\\n')\n    c.close()\n";
    let script = workspace.write("mail.py", script);
    let mail = Server::new(
        crate::support::ask::Client::Http(port),
        ["/usr/bin/python3", &script, &port.to_string()],
    );
    let (_, error) = expect(114, &mut mail.bench(&workspace, &["-n", "1"]));
    assert!(error.contains("what came back is not HTTP"), "{error}");
    let url = format!("tcp://127.0.0.1:{port}");
    expect(0, &mut mail.bench(&workspace, &["-n", "1", "--url", &url]));
    workspace.assert_clean();
}

#[test]
fn a_port_that_someone_else_has_is_named_with_its_holder() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    expect(0, &mut server.capture(&workspace, &["--name", "shop"]));
    let cold = server.start_cold(&workspace);
    server.client.ask_until_answered();
    let error = workspace.fail(109, ["bench", "--image", "shop"]);
    assert!(
        error.contains("is already taken by server (pid ")
            && error.contains("Hint: stop what answers there"),
        "{error}"
    );
    // It was left alone.
    server.client.ask().unwrap();
    drop(cold);
    workspace.assert_clean();
}

#[test]
fn a_file_that_cannot_be_written_is_found_before_anything_is_measured() {
    let workspace = Workspace::new();
    let server = dies_at(&workspace, 1);
    let options = ["--export-json", "missing/a.json"];
    let (_, error) = expect(100, &mut server.bench(&workspace, &options));
    assert!(error.contains("cannot write missing/a.json"), "{error}");
    assert!(!workspace.path().join("starts").exists());
    for bad in [
        ["--url", "https://localhost/"],
        ["--max-regression", "10%"],
        ["--min-speedup", "fast"],
        ["--runs", "0"],
        ["--warmup-runs", "18446744073709551615"],
        ["--timeout", "1e19"],
        ["--at", "sometime"],
    ] {
        workspace.fail(2, ["bench"].into_iter().chain(bad).chain(["--", "true"]));
    }
    let url = ["bench", "--url", "http://127.0.0.1:1/"];
    let error = workspace.fail(2, url.into_iter().chain(["--send", "x", "--", "true"]));
    assert!(
        error.contains("--send is for http://127.0.0.1:1/ without meaning"),
        "{error}"
    );
}

#[test]
fn results_go_through_links_and_to_devices_without_replacing_them() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    let real = workspace.write("real.json", "old");
    let link = workspace.path().join("link.json");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let fifo = workspace.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut reader = Killed(
        Command::new("cat")
            .arg(&fifo)
            .stdout(fs::File::create(workspace.path().join("read")).unwrap())
            .spawn()
            .unwrap(),
    );
    let mut options = vec!["-n", "1", "--export-json", link.to_str().unwrap()];
    options.extend([
        "--export-svg",
        fifo.to_str().unwrap(),
        "--export-html",
        "/dev/null",
    ]);
    expect(0, &mut server.bench(&workspace, &options));
    reader.wait();
    assert!(link.is_symlink() && Results::read(Path::new(&real)).is_ok());
    let read = fs::read_to_string(workspace.path().join("read")).unwrap();
    assert!(read.starts_with("<svg "), "{read}");
    assert!(!Path::new("/dev/null").is_file());
    workspace.assert_clean();
}

#[test]
fn a_server_in_a_script_is_ended_with_it() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    let words = format!("{}; true", server.command.join(" "));
    let script = Server::new(server.client, ["sh", "-c", &words]);
    // A wait of ten seconds for each cold start would exceed the limit.
    let variables = format!("PORT=1; {}", server.command.join(" "));
    let options = ["-n", "4", "--requests", "1", "--baseline", &variables];
    let (report, _) = expect(0, &mut script.bench(&workspace, &options));
    assert!(report.contains("PORT=1;"), "{report}");
    workspace.assert_clean();
}

#[test]
fn a_unix_socket_that_a_killed_server_leaves_is_removed() {
    let workspace = Workspace::new();
    let script = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('my app.sock')\n\
                  s.listen()\nwhile True:\n    c = s.accept()[0]\n    c.recv(999)\n    \
                  c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\nHello')\n    c.close()\n";
    let script = workspace.write("unix.py", script);
    let path = workspace.path().join("my app.sock");
    let client = crate::support::ask::Client::HttpOverUnix(path.clone());
    let server = Server::new(client, ["/usr/bin/python3", &script]);
    let (report, _) = expect(
        0,
        &mut server.bench(&workspace, &["-n", "2", "--baseline", "criu"]),
    );
    assert!(report.contains("/my app.sock:/"), "{report}");
    assert!(!path.exists());
    // The log of a failure is where the hint says, though the images are gone: CRIU that is not
    // told the folder fails.
    let criu = warmimg::criu::Program::find(None).unwrap().path;
    let script = format!(
        "#!/bin/sh\ncase $1 in swrk) exec false;; esac\nexec {} \"$@\"\n",
        criu.display()
    );
    let broken = workspace.write("criu", &script);
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, executable).unwrap();
    let (_, error) = expect(106, &mut server.bench(&workspace, &["--criu", &broken]));
    assert!(!error.contains("/staging/"), "{error}");
    fs::remove_file(&path).unwrap();
    workspace.assert_clean();
}

#[test]
fn an_interrupted_measurement_leaves_nothing() {
    // Alone, as other tests have groups.
    let workspace = Workspace::alone();
    let server = servers::accept_loop(&workspace, &["sleep=300"]);
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let mut bench = server.bench(&workspace, &["--runs", "1000", "--export-json", "a.json"]);
        bench.stdout(std::process::Stdio::null());
        let mut bench = Killed(bench.spawn().unwrap());
        server.client.ask_until_answered();
        bench.signal(signal);
        assert_eq!(bench.wait(), code);
        server.wait_for_silence();
    }
    // What a killed one left, the next removes.
    expect(0, &mut server.bench(&workspace, &["-n", "1"]));
    let groups =
        "mount -t cgroup2 none /mnt && cd /mnt$(sed -n 's/^0:://p' /proc/self/cgroup) && ls";
    let mut look = Command::new("unshare");
    look.args(["--mount", "--", "sh", "-c", groups]);
    let (names, _) = expect(0, &mut look);
    assert!(!names.contains("warmimg."), "{names}");
    workspace.assert_clean();
}
