//! Keeps the help texts in README.md those of the program.
//!
//! Between `<!-- help COMMAND -->` and `<!-- end -->` stands the help of a command, in a code block.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::run::Runner;

const BEGIN: &str = "<!-- help";
const END: &str = "<!-- end -->";

pub fn update(runner: &Runner, check: bool) -> Result<()> {
    runner.cargo(&["build", "--quiet", "--locked", "--package", "warmimg"])?;
    if runner.is_dry() {
        return Ok(());
    }
    let path = runner.root.join("README.md");
    let old = fs::read_to_string(&path).context("cannot read README.md")?;
    let new = with_help(&old, |command| help(runner, command))?;
    match (old == new, check) {
        (true, _) => Ok(()),
        (false, true) => {
            bail!("README.md has other help texts than the program: `cargo xtask docs`")
        }
        (false, false) => Ok(fs::write(&path, new)?),
    }
}

fn with_help(text: &str, help: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut new = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (command, after) = after.split_once("-->").context("a mark has no end")?;
        let (_, after) = after.split_once(END).context("a help text has no end")?;
        let command = command.trim();
        new += &format!(
            "{before}{BEGIN} {command} -->\n```text\n{}\n```\n{END}",
            help(command)?
        );
        rest = after;
    }
    Ok(new + rest)
}

fn help(runner: &Runner, command: &str) -> Result<String> {
    let mut program = Command::new(runner.root.join("target/debug/warmimg"));
    let words = command.split_whitespace().filter(|&word| word != "warmimg");
    // Its width and the defaults shown must not depend on where this runs.
    program.args(words).arg("-h").env("COLUMNS", "100");
    program
        .env_remove("WARMIMG_STORE")
        .env_remove("WARMIMG_CRIU");
    let output = program.output().context("cannot run warmimg")?;
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_texts_are_put_between_the_marks() {
        let text = "a\n<!-- help warmimg ps -->\nold\n<!-- end -->\nb\n";
        let new = with_help(text, |command| Ok(format!("help of {command}"))).unwrap();
        assert_eq!(
            new,
            "a\n<!-- help warmimg ps -->\n```text\nhelp of warmimg ps\n```\n<!-- end -->\nb\n"
        );
        assert_eq!(
            with_help(&new, |command| Ok(format!("help of {command}"))).unwrap(),
            new
        );
        assert!(with_help("<!-- help x -->", |_| Ok(String::new())).is_err());
    }
}
