//! Holds dependencies to `deny.toml`: where they come from, and on which terms. What cargo-deny would
//! say takes minutes to install; this needs nothing but `cargo metadata`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::run::Runner;

/// The part of deny.toml that is looked at.
#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    clarify: Vec<Clarified>,
}

/// The licence of a package that names none but has its text.
#[derive(Deserialize)]
struct Clarified {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None of a member of the workspace.
    source: Option<String>,
    license: Option<String>,
}

pub fn check(runner: &Runner) -> Result<()> {
    let rules =
        fs::read_to_string(runner.root.join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&rules).context("cannot parse deny.toml")?;
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = runner.cargo_command(&["metadata", "--locked", "--format-version", "1"]);
    let output = cargo.args(["--filter-platform", &platform]).output();
    let output = output.context("cannot run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot parse what cargo metadata says")?;
    let faults = faults(&rules, &metadata);
    ensure!(
        faults.is_empty(),
        "dependencies:\n  {}",
        faults.join("\n  ")
    );
    runner.say(&format!(
        "{} packages are as deny.toml wants",
        metadata.packages.len()
    ));
    Ok(())
}

fn faults(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let clarified: BTreeMap<_, _> = rules
        .licenses
        .clarify
        .iter()
        .map(|known| (&known.name, &known.expression))
        .collect();
    let fault = |package: &Package| {
        let source = package.source.as_deref()?;
        let license = package
            .license
            .as_ref()
            .or(clarified.get(&package.name).copied());
        let why = match license {
            _ if !source.starts_with("registry+https://github.com/rust-lang/crates.io-index") => {
                format!("comes from {source}")
            }
            _ if rules
                .bans
                .deny
                .iter()
                .any(|banned| banned.name == package.name) =>
            {
                "is banned".to_owned()
            }
            None => "names no licence".to_owned(),
            Some(license) if !is_allowed(license, &rules.licenses.allow) => {
                format!("has the licence {license}")
            }
            Some(_) => return None,
        };
        Some(format!("{} {} {why}", package.name, package.version))
    };
    metadata.packages.iter().filter_map(fault).collect()
}

/// Whether the terms can be met by licences that are allowed.
fn is_allowed(license: &str, allowed: &[String]) -> bool {
    // Older packages write `/` for OR.
    Expression::parse_mode(license, ParseMode::LAX)
        .is_ok_and(|terms| terms.evaluate(|required| allowed.contains(&required.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_met_by_what_is_allowed() {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (license, expected) in [
            ("MIT", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("(MIT OR Apache-2.0) AND NCSA", false),
            ("no licence", false),
        ] {
            assert_eq!(is_allowed(license, &allowed), expected, "{license}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rules = "licenses.allow = ['MIT']\nbans.deny = [{ crate = 'bad' }]";
        let rules: Rules = toml::from_str(rules).unwrap();
        let package = |name: &str, source: Option<&str>, license: &str| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            source: source.map(str::to_owned),
            license: Some(license.to_owned()),
        };
        let index = Some("registry+https://github.com/rust-lang/crates.io-index");
        let packages = vec![
            package("own", None, "none"),
            package("good", index, "MIT"),
            package("bad", index, "MIT"),
            package("strange", index, "GPL-3.0-only"),
            package("foreign", Some("git+https://example.org/x"), "MIT"),
        ];
        let expected = [
            "bad 1.0.0 is banned",
            "strange 1.0.0 has the licence GPL-3.0-only",
            "foreign 1.0.0 comes from git+https://example.org/x",
        ];
        assert_eq!(faults(&rules, &Metadata { packages }), expected);
    }
}
