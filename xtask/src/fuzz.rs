//! Feeds the parsers of warmimg with damaged samples, by libFuzzer: `cargo xtask fuzz`.
//!
//! The compiler of the workspace does; what libFuzzer needs from it, to see which code an input
//! reaches, are options of LLVM that stable compilers have.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::Runner;

/// Counters for each edge of the control flow, where they are, and what is compared with what. With
/// `--target`, they are for the program alone and not for what runs while it is built.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// How long each target is run if nothing else is asked for.
const SECONDS: u32 = 20;

/// What an input may take: seconds, and MiB of memory.
const LIMITS: [&str; 2] = ["-timeout=60", "-rss_limit_mb=2048"];

/// How long a target is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Seconds(u32),
    /// So many executions, the same each time.
    Runs(u32),
}

impl Extent {
    fn options(self) -> Vec<String> {
        match self {
            Self::Seconds(seconds) => vec![format!("-max_total_time={seconds}")],
            Self::Runs(runs) => vec!["-seed=1".to_owned(), format!("-runs={runs}")],
        }
    }
}

/// Runs targets, all of them if none is named: `[--seconds N | --runs N] [TARGET…]`.
pub fn run(runner: &Runner, arguments: &[String]) -> Result<()> {
    let corpus = runner.root.join("tests/fuzz/corpus");
    let known = names(&corpus)?;
    let (extent, wanted) = parse(arguments, &known)?;
    build(runner)?;
    if runner.is_dry() {
        return Ok(());
    }
    let failed: Vec<_> = wanted
        .iter()
        .map(|target| fuzz(runner, &corpus, target, extent).map(|passed| (target, passed)))
        .collect::<Result<_>>()?;
    let failed: Vec<_> = failed.iter().filter(|(_, passed)| !passed).collect();
    let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(names.is_empty(), "failed: {}", names.join(", "));
    Ok(())
}

/// The targets, each of which has a folder.
fn names(corpus: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(corpus).context("cannot read tests/fuzz/corpus")?;
    let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
    let mut names: Vec<_> = entries.flatten().filter_map(name).collect();
    names.sort();
    Ok(names)
}

fn parse(arguments: &[String], known: &[String]) -> Result<(Extent, Vec<String>)> {
    let (mut extent, mut wanted) = (Extent::Seconds(SECONDS), Vec::new());
    let mut rest = arguments.iter().filter(|word| *word != "--dry-run");
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--seconds" | "--runs" => {
                let number = rest.next().and_then(|text| text.parse().ok());
                let number = number.filter(|&number| number > 0);
                let number = number.with_context(|| format!("{word} takes a number from 1 on"))?;
                extent = match word.as_str() {
                    "--runs" => Extent::Runs(number),
                    _ => Extent::Seconds(number),
                };
            }
            name if known.iter().any(|known| known == name) => wanted.push(word.clone()),
            other => bail!("there is no target {other}: known are {}", known.join(", ")),
        }
    }
    if wanted.is_empty() {
        wanted = known.to_vec();
    }
    Ok((extent, wanted))
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn build(runner: &Runner) -> Result<()> {
    let triple = triple();
    let variable = format!("CARGO_TARGET_{triple}_RUSTFLAGS").replace('-', "_");
    let options = ["build", "--quiet", "--locked", "--package", "fuzz"];
    let place = ["--target", &triple, "--target-dir", "target/fuzz"];
    let mut cargo = runner.cargo_command(&options);
    cargo.args(place).env(variable.to_uppercase(), FLAGS);
    runner.run(&mut cargo)
}

/// Runs a target and says how it went; returns whether it passed.
fn fuzz(runner: &Runner, corpus: &Path, target: &str, extent: Extent) -> Result<bool> {
    let folder = runner.root.join("target/fuzz");
    // What is found on the way is kept from run to run, aside of the samples.
    let (found, failed) = (folder.join("found").join(target), folder.join("failed"));
    for folder in [&found, &failed] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let program = folder.join(triple()).join("debug/fuzz");
    let input = failed.join(format!("{target}-"));
    let mut command = Command::new(&program);
    command
        .args(LIMITS)
        .args(extent.options())
        .arg(format!("-artifact_prefix={}", input.display()))
        .arg("-print_final_stats=1")
        .args([&found, &corpus.join(target)])
        .env("FUZZ_TARGET", target)
        .stdin(Stdio::null());
    let output = command.output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    let count = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    if output.status.success() {
        println!("{target:<16} {count:>9} executions");
        return Ok(true);
    }
    let lines: Vec<_> = log.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    println!(
        "{target:<16} FAILED; again: FUZZ_TARGET={target} {} FILE",
        program.display()
    );
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_times_are_chosen() {
        let known = ["btf", "elf"].map(str::to_owned);
        let parsed = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            parse(&words, &known)
        };
        assert_eq!(
            parsed(&[]).unwrap(),
            (Extent::Seconds(SECONDS), known.to_vec())
        );
        let elf = vec!["elf".to_owned()];
        let seconds = (Extent::Seconds(5), elf.clone());
        assert_eq!(parsed(&["elf", "--seconds", "5"]).unwrap(), seconds);
        assert_eq!(
            parsed(&["--runs", "9", "elf"]).unwrap(),
            (Extent::Runs(9), elf)
        );
        for bad in [&["--seconds"][..], &["--seconds", "0"], &["other"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
