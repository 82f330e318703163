//! The demonstration: cold start against restore of the demo server.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{run::Runner, setup};

/// Cold starts and restores that are timed, in turn.
const RUNS: usize = 9;

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn run(runner: &Runner) -> Result<()> {
    setup::set_up(runner, false)?;
    let build = ["build", "--release", "--locked", "--package", "warmimg"];
    runner.say("building warmimg and the demo server, which indexes the kernel's types");
    runner.cargo(&[&build[..], &["--bins", "--example", "kernel-types"]].concat())?;

    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let program = |name: &str| runner.root.join("target/release").join(name);
    let server = program("examples/kernel-types").display().to_string();
    let store = runner.root.join("target/demo-store");
    let warmimg = |arguments: &[&str]| {
        let mut command = runner.as_root(program("warmimg"));
        command.arg("--store").arg(&store).args(arguments);
        command
    };
    let port_text = port.to_string();
    let capture = ["capture", "--name", "demo", "--", &server, &port_text];
    runner.say("capturing it when it waits for its first connection");
    runner.run(&mut warmimg(&capture))?;
    if runner.is_dry() {
        return Ok(());
    }
    runner.say(&format!(
        "starting it cold and restoring it in turn, {RUNS} times each"
    ));
    let (mut cold, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        cold.push(first_byte(Command::new(&server).arg(&port_text), port)?);
        restored.push(first_byte(&mut warmimg(&["restore", "demo"]), port)?);
    }
    let (cold, restored) = (median(cold), median(restored));
    let ratio = cold.as_secs_f64() / restored.as_secs_f64();
    println!("\n  first byte of the first response, median of {RUNS}");
    println!("    cold start   {:>7.1} ms", cold.as_secs_f64() * 1000.0);
    println!(
        "    restored     {:>7.1} ms   {ratio:.1} times as fast",
        restored.as_secs_f64() * 1000.0
    );
    println!("\nTry it yourself:\n");
    let warmimg = program("warmimg");
    let show = |path: &Path| {
        path.strip_prefix(&runner.root)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    let shown = format!("  {} --store {}", show(&warmimg), show(&store));
    println!("{shown} restore -d demo\n  curl 'http://127.0.0.1:{port}/?q=sock'");
    println!("{shown} stop demo-1");
    Ok(())
}

/// Starts a server, waits for the first byte of its first answer, and ends it.
fn first_byte(command: &mut Command, port: u16) -> Result<Duration> {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = quiet.spawn().context("cannot start the server")?;
    let answered = loop {
        if ask(port).is_some() {
            break Some(begun.elapsed());
        }
        if begun.elapsed() > LIMIT || child.try_wait()?.is_some() {
            break None;
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    end(&mut child)?;
    answered.with_context(|| format!("no answer from {command:?}"))
}

fn ask(port: u16) -> Option<u8> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(b"GET /?q=sock HTTP/1.0\r\n\r\n").ok()?;
    let mut first = [0];
    stream.read_exact(&mut first).ok()?;
    Some(first[0])
}

/// Ends a child by SIGTERM, which a supervisor passes on.
fn end(child: &mut Child) -> Result<()> {
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    kill.context("cannot run kill")?;
    let deadline = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            bail!("the server does not end");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
