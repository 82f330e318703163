//! What a person runs from a checkout: `cargo xtask setup | demo | test | check | fuzz | bench | docs`.

mod criu;
mod demo;
mod dependencies;
mod docs;
mod fuzz;
mod run;
mod setup;
mod stubs;

use anyhow::{Result, bail};
use run::Runner;

const USAGE: &str = "\
Usage: cargo xtask COMMAND [--dry-run]

  setup [--tests]   install what is missing to build warmimg (and to test it)
  demo              set up, build, then capture and restore the demo server
  test              set up and run all tests
  check             format, lints (warnings are errors), help texts in README.md, licences
                    and sources of dependencies
  fuzz [--seconds N | --runs N] [TARGET…]
                    damaged samples for each parser, 20 s each; what makes one fail is kept
  bench [SERVER…]   start-up of the real servers, and the documents made from it; `bench overhead`
                    for what warmimg itself costs, `bench scale` for large heaps, many copies, load,
                    the proxy, sites that sleep
  docs [--check]    write the help texts into README.md (or check them)

  --dry-run         only show what would be done";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let runner = Runner::new(has("--dry-run"))?;
    match arguments.first().map(String::as_str) {
        Some("setup") => setup::set_up(&runner, has("--tests")),
        Some("demo") => demo::run(&runner),
        Some("test") => test(&runner),
        Some("check") => check(&runner),
        Some("fuzz") => fuzz::run(&runner, &arguments[1..]),
        Some("bench") => bench(&runner, &arguments[1..]),
        Some("docs") => docs::update(&runner, has("--check")),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown command\n\n{USAGE}"),
    }
}

fn test(runner: &Runner) -> Result<()> {
    setup::set_up(runner, true)?;
    // There are no examples in the documentation to be tested.
    let tests = [
        "test",
        "--workspace",
        "--locked",
        "--lib",
        "--bins",
        "--tests",
    ];
    runner.cargo_as_root(&tests)
}

fn check(runner: &Runner) -> Result<()> {
    runner.cargo(&["fmt", "--all", "--check"])?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    runner.cargo(&lints)?;
    dependencies(runner)?;
    docs::update(runner, true)
}

/// Holds dependencies to deny.toml; what needs more than `cargo metadata`, with cargo-deny.
fn dependencies(runner: &Runner) -> Result<()> {
    dependencies::check(runner)?;
    match runner.look("cargo-deny", &["--version"]) {
        Some(_) => runner.cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"]),
        None => Ok(()),
    }
}

fn bench(runner: &Runner, arguments: &[String]) -> Result<()> {
    setup::set_up(runner, true)?;
    let (program, skip) = match arguments.first().map(String::as_str) {
        Some(other @ ("overhead" | "scale")) => (other, 1),
        _ => ("startup", 0),
    };
    let arguments = arguments.iter().map(String::as_str).skip(skip);
    let arguments = arguments.filter(|&argument| argument != "--dry-run");
    let bench = [
        "bench",
        "--locked",
        "--package",
        "warmimg",
        "--bench",
        program,
        "--",
    ];
    runner.cargo_as_root(&bench.into_iter().chain(arguments).collect::<Vec<_>>())
}
