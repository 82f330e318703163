//! The gate of `warmimg bench`: it catches what got slower, and nothing else.

use std::{fs, path::Path, process::Command};

use warmimg::bench::{Results, results::Timing};

use crate::support::{Workspace, describe, expect, finish, fixture, server::Server, servers};

/// A server that takes 150 ms to answer, so that what a machine adds by chance is small; CRIU in
/// a script that can take longer than it must.
struct Gated {
    workspace: Workspace,
    server: Server,
}

impl Gated {
    fn new() -> Self {
        let workspace = Workspace::alone();
        let server = servers::accept_loop(&workspace, &["answer=150"]);
        Self { workspace, server }
    }

    /// Measures, with that much added to each restore, and compares with stored results; returns
    /// whether the gate let it pass.
    fn passes(&self, delay_ms: u32, against: Option<&str>, store_as: &str) -> bool {
        let criu = warmimg::criu::Program::find(None).unwrap().path;
        let script = format!(
            "#!/bin/sh\ncase \"$1\" in swrk) sleep 0.{delay_ms:03};; esac\nexec {} \"$@\"\n",
            criu.display()
        );
        let slowed = self.workspace.write("criu", &script);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&slowed, executable).unwrap();
        let path = |name: &str| self.workspace.path().join(name).display().to_string();
        let (stored, against) = (path(store_as), against.map(path));
        let mut options = vec![
            "--criu",
            &slowed,
            "--requests",
            "1",
            "--export-json",
            &stored,
        ];
        if let Some(against) = &against {
            options.extend(["--against", against, "--max-regression", "10%"]);
        }
        let output = finish(&mut self.server.bench(&self.workspace, &options));
        match output.status.code() {
            Some(0) => true,
            Some(115) => false,
            _ => panic!("{}", describe(&output)),
        }
    }

    fn first_response(&self, stored: &str) -> f64 {
        let results = Results::read(&self.workspace.path().join(stored)).unwrap();
        results.subjects[1].median(Timing::FirstResponse).value
    }
}

#[test]
fn the_gate_catches_a_slowdown_of_15_percent_each_time() {
    let gated = Gated::new();
    assert!(gated.passes(0, None, "before.json"));
    let planted = gated.first_response("before.json") * 0.15;
    for attempt in 1..=10 {
        let passes = gated.passes(planted.round() as u32, Some("before.json"), "after.json");
        assert!(
            !passes,
            "attempt {attempt}: {}",
            gated.first_response("after.json")
        );
    }
    gated.workspace.assert_clean();
}

#[test]
fn the_gate_lets_what_has_not_changed_pass() {
    let gated = Gated::new();
    assert!(gated.passes(0, None, "0.json"));
    let passed = (1..=20).filter(|attempt| {
        let (before, now) = (format!("{}.json", attempt - 1), format!("{attempt}.json"));
        gated.passes(0, Some(&before), &now)
    });
    let passed = passed.count();
    assert!(passed >= 19, "{passed} of 20");
    gated.workspace.assert_clean();
}

#[test]
fn the_least_speed_up_is_required() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &["sleep=300"]);
    let options = ["-n", "2", "--min-speedup", "2x"];
    let (report, _) = expect(0, &mut server.bench(&workspace, &options));
    assert!(report.contains("at least the 2x asked for"), "{report}");
    let options = [
        "-n",
        "2",
        "--min-speedup",
        "1000x",
        "--export-markdown",
        "a.md",
    ];
    let (report, _) = expect(115, &mut server.bench(&workspace, &options));
    let last = report.lines().last().unwrap();
    assert!(
        last.starts_with("FAILED   restored at ready, first response: only ")
            && last.ends_with(" where 1000x is asked for"),
        "{last}"
    );
    // The report and the files are written all the same: one wants to know why.
    let markdown = fs::read_to_string(workspace.path().join("a.md")).unwrap();
    assert!(markdown.contains("- ❌ restored at ready"), "{markdown}");
    workspace.assert_clean();
}

/// `tests/results/schema-1.json` was written by the first version that had the command.
#[test]
fn results_of_an_earlier_version_can_be_compared_with() {
    let workspace = Workspace::new();
    let stored = fixture("../results/schema-1.json");
    let results = Results::read(Path::new(&stored)).unwrap();
    let cold = results.cold().unwrap();
    let speed_up = results
        .speed_up(&results.subjects[1], Timing::FirstResponse)
        .unwrap();
    assert_eq!(
        (cold.samples.len(), results.subjects[1].samples.len()),
        (10, 10)
    );
    assert!((1.0..100.0).contains(&speed_up.value));

    let server = servers::accept_loop(&workspace, &["sleep=200"]);
    let mut options = vec!["-n", "5", "--against", &stored, "--max-regression", "1000%"];
    let (report, _) = expect(0, &mut server.bench(&workspace, &options));
    let judged = "restored at ready, first response: ";
    assert!(report.contains(&format!("ok       {judged}")), "{report}");
    // Two rounds prove nothing.
    options[1] = "2";
    options[5] = "0%";
    let (report, _) = expect(0, &mut server.bench(&workspace, &options));
    assert!(report.contains(&format!("unclear  {judged}")), "{report}");

    let newer = workspace.write("newer.json", r#"{"type":"bench","schema":999}"#);
    let error = workspace.fail(2, ["bench", "--against", &newer, "--", "true"]);
    assert!(error.contains("has schema 999"), "{error}");
    let other = workspace.write("other.json", "{}");
    let error = workspace.fail(2, ["bench", "--against", &other, "--", "true"]);
    assert!(
        error.contains("does not hold results") && error.contains("--export-json FILE"),
        "{error}"
    );
    let error = workspace.fail(2, ["bench", "--against", "missing.json", "--", "true"]);
    assert!(error.contains("No such file"), "{error}");
    let options = ["-n", "1", "--at", "listen", "--against", &stored];
    let (_, error) = expect(2, &mut server.bench(&workspace, &options));
    assert!(error.contains("nothing to compare with"), "{error}");
    let (_, error) = expect(
        2,
        &mut server.bench(&workspace, &["--drop-caches", "--against", &stored]),
    );
    assert!(error.contains("measured with a warm page cache"), "{error}");
    let options = ["--against", &stored, "--export-json", &stored];
    let (_, error) = expect(2, &mut server.bench(&workspace, &options));
    assert!(error.contains("would be overwritten"), "{error}");
    workspace.assert_clean();
}

#[test]
fn the_script_for_ci_compares_with_what_it_stored() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &["sleep=200"]);
    let script = fixture("../../benches/gate.sh");
    let gate = |stored: &str, factor: &str| {
        let mut command = Command::new("sh");
        command
            .args([&script, stored, "out put"])
            .args(&server.command);
        command
            .env("WARMIMG", assert_cmd::cargo::cargo_bin!("warmimg"))
            .env("WARMIMG_STORE", workspace.store())
            .env("MAX_REGRESSION", "1000%")
            .env("OPTIONS", format!("--runs 5 --min-speedup {factor}"))
            .current_dir(workspace.path());
        workspace.mark(&mut command);
        command
    };
    expect(0, &mut gate("-", "1x"));
    let stored = workspace.path().join("stored here.json");
    fs::rename(workspace.path().join("out put/startup.json"), &stored).unwrap();
    let (report, _) = expect(0, &mut gate("stored here.json", "1x"));
    assert!(
        report.contains("ok       restored at ready, first byte"),
        "{report}"
    );
    expect(115, &mut gate("stored here.json", "1000x"));
    for name in ["startup.json", "startup.md", "startup.svg", "startup.html"] {
        assert!(
            workspace.path().join("out put").join(name).exists(),
            "{name}"
        );
    }
    let (_, error) = expect(2, &mut gate("missing.json", "1x"));
    assert!(error.contains("missing.json"), "{error}");
    workspace.assert_clean();
}
