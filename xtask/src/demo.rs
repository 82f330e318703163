//! The demonstration: cold start against restore of the demo server.

use std::{net::TcpListener, path::Path};

use anyhow::Result;

use crate::{run::Runner, setup};

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
    runner.say("measuring its start-up, cold and restored in turn");
    let url = format!("http://127.0.0.1:{port}/?q=sock");
    runner.run(&mut warmimg(&["bench", "--image", "demo", "--url", &url]))?;
    if runner.is_dry() {
        return Ok(());
    }
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
