//! Images that are kept, compared and removed.

use serde_json::Value;

use crate::support::{Workspace, ask::Client, expect, free_port, server::Server, servers};

fn capture(workspace: &Workspace, name: &str) -> Server {
    let server = servers::plain("accept", free_port());
    expect(0, &mut server.capture(workspace, &["--name", name]));
    server
}

fn lines(printed: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap();
    printed.lines().map(parse).collect()
}

/// The names of the images, newest first; `-` for one without.
fn names(workspace: &Workspace) -> Vec<String> {
    let images = lines(&workspace.run(["--json", "images"]));
    let name = |image: &Value| image["names"][0].as_str().unwrap_or("-").to_owned();
    images.iter().map(name).collect()
}

#[test]
fn old_images_go_and_what_runs_stays() {
    let workspace = Workspace::new();
    for name in ["web", "shop", "web", "web", "other"] {
        capture(&workspace, name);
    }
    assert_eq!(names(&workspace), ["other", "web", "-", "shop", "-"]);
    let error = workspace.fail(2, ["prune"]);
    assert!(error.contains("--keep <N>"), "{error}");
    let error = workspace.fail(2, ["prune", "--older-than", "often"]);
    assert!(error.contains("invalid value 'often'"), "{error}");

    // Names protect, and so do the newest.
    let told = workspace.run(["prune", "--keep", "4", "--dry-run"]);
    assert!(told.starts_with("Would remove "), "{told}");
    assert_eq!(told.lines().count(), 2);
    assert_eq!(
        workspace
            .run(["prune", "--older-than", "1h"])
            .lines()
            .count(),
        1
    );
    assert_eq!(names(&workspace).len(), 5);
    let removed = lines(&workspace.run(["--json", "prune", "--keep", "4"]));
    assert_eq!(
        (&removed[0]["type"], &removed[0]["removed"]),
        (&"prune".into(), &true.into())
    );
    assert_eq!((removed.len(), &removed[1]["fits"]), (2, &true.into()));
    assert_eq!(names(&workspace), ["other", "web", "-", "shop"]);
    workspace.run(["prune", "--older-than", "1ms"]);
    assert_eq!(names(&workspace), ["other", "web", "shop"]);
    let told = workspace.run(["prune", "--keep", "1"]);
    assert!(told.contains("remain: those in use stay"), "{told}");
    assert_eq!(names(&workspace), ["other", "web", "shop"]);

    // What an instance uses stays, whatever is said.
    for memory in ["map", "copy"] {
        workspace.run(["restore", "-d", "--memory", memory, "shop"]);
        let error = workspace.fail(119, ["rm", "web", "shop"]);
        let expected = " is in use by shop-1\nHint: end it first: warmimg stop shop-1\n";
        assert!(error.ends_with(expected), "{error}");
        assert_eq!(names(&workspace), ["other", "web", "shop"]);
        workspace.run(["stop", "--all"]);
    }
    workspace.run(["restore", "-d", "shop"]);
    let told = workspace.run(["prune", "--all", "--max-size", "1K"]);
    assert!(told.contains("remain, more than 1.0 KiB: in use"), "{told}");
    assert_eq!(names(&workspace), ["shop"]);
    workspace.run(["stop", "--all"]);
    workspace.run(["prune", "--all", "--keep", "0"]);
    assert_eq!(names(&workspace), [""; 0]);
    workspace.assert_clean();
}

#[test]
fn what_differs_between_two_images_is_told() {
    let workspace = Workspace::new();
    let program = servers::compile(&workspace, "memory/server.c");
    let port = free_port();
    let server = Server::new(Client::Http(port), [program, port.to_string()]);
    let capture = |name, mode| {
        let mut command = server.capture(&workspace, &["--name", name]);
        expect(0, command.env("MODE", mode));
    };
    capture("first", "slow");
    capture("second", "fast");
    let diff = |before: &str, after: &str| {
        let printed = workspace.run(["--json", "diff", before, after]);
        lines(&printed).pop().unwrap()
    };
    let count = |diff: &Value, what: &str| diff["total"][what].as_u64().unwrap();

    let found = diff("first", "second");
    assert_eq!(found["settings"], Value::Array(vec![]));
    let variable = serde_json::json!([{ "what": "MODE", "before": "slow", "after": "fast" }]);
    assert_eq!(found["environment"], variable);
    assert_eq!(found["dependencies"], Value::Array(vec![]));
    let files = found["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["what"] == "criu/pages-1.img"));
    assert!(count(&found, "same") > 0 && count(&found, "different") > 0);
    // Every page is counted once.
    let pages = |name: &str| {
        let image = lines(&workspace.run(["--json", "inspect", name]))
            .pop()
            .unwrap();
        image["manifest"]["memory_bytes"].as_u64().unwrap() / 4096
    };
    let both = count(&found, "same") + count(&found, "different");
    assert_eq!(both + count(&found, "only_before"), pages("first"));
    assert_eq!(both + count(&found, "only_after"), pages("second"));
    // For people, names of variables without their values.
    let printed = workspace.run(["diff", "first", "second"]);
    assert!(printed.contains("Environment\n  ~ MODE\n"), "{printed}");
    assert!(!printed.contains("slow"), "{printed}");
    assert!(printed.contains("\n  process 300 "), "{printed}");

    // An image does not differ from itself, and little from what became of it.
    let same = diff("first", "first");
    assert_eq!(count(&same, "same"), pages("first"));
    for part in [
        "settings",
        "environment",
        "processes",
        "dependencies",
        "files",
    ] {
        assert_eq!(same[part], Value::Array(vec![]), "{part}");
    }
    workspace.run(["restore", "-d", "first"]);
    workspace.run(["checkpoint", "--pid", "first-1", "--name", "later"]);
    let later = diff("first", "later");
    assert!(
        count(&later, "same") * 10 > pages("first") * 9,
        "{}",
        later["total"]
    );
    let point = &later["settings"][0];
    assert_eq!(
        (&point["what"], &point["after"]),
        (&"point".into(), &"checkpoint".into())
    );
    let error = workspace.fail(107, ["diff", "first", "nothing"]);
    assert!(error.contains("no image is called \"nothing\""), "{error}");
    workspace.assert_clean();
}
