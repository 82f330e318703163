//! Images whose files are not what was stored: refused before anything runs, and told of by `verify`.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::support::{Workspace, expect, free_port, server::Server, servers};

/// A workspace with an image called `plain`; its folder.
fn captured() -> (Workspace, Server, PathBuf) {
    let workspace = Workspace::new();
    let server = servers::plain("accept", free_port());
    expect(0, &mut server.capture(&workspace, &["--name", "plain"]));
    let folder = image(&workspace);
    (workspace, server, folder)
}

fn image(workspace: &Workspace) -> PathBuf {
    let described: Value = serde_json::from_str(&workspace.run(["--json", "inspect"])).unwrap();
    let digest = described["digest"].as_str().unwrap();
    workspace.store().join("images").join(digest)
}

/// Asserts that the image is not restored, for this reason, and that nothing was begun.
fn refuse(workspace: &Workspace, file: &Path, reason: &str) -> String {
    let error = workspace.fail(108, ["restore", "-d", "plain"]);
    let expected = format!("Error: {} {reason}\nHint: ", file.display());
    assert!(error.starts_with(&expected), "{error}");
    workspace.assert_clean();
    let logs = workspace.store().join("logs");
    assert_eq!(fs::read_dir(logs).unwrap().count(), 0, "CRIU was run");
    error
}

/// Asserts that the image is told to be damaged in this way alone.
fn is_told(workspace: &Workspace, file: &str, reason: &str, kind: &str) {
    let (printed, _) = expect(108, &mut workspace.warmimg(["verify", "plain"]));
    let mut lines = printed.lines();
    assert!(lines.next().unwrap().starts_with("DAMAGED  plain ("));
    let expected = format!("         {file} {reason}");
    assert_eq!((lines.next(), lines.next()), (Some(&expected[..]), None));
    let (printed, _) = expect(108, &mut workspace.warmimg(["--json", "verify", "plain"]));
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(
        (&printed["type"], &printed["schema"]),
        (&"verify".into(), &1.into())
    );
    assert_eq!(
        (&printed["ok"], &printed["resealed"]),
        (&false.into(), &false.into())
    );
    let faults = printed["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 1, "{printed}");
    let fault = ["path", "kind", "message"].map(|key| faults[0][key].as_str().unwrap());
    assert_eq!(fault, [file, kind, reason]);
}

fn bring_back(workspace: &Workspace, server: &Server) {
    workspace.run(["restore", "-d", "plain"]);
    server.client.ask_until_answered();
    workspace.run(["stop", "--all"]);
    server.wait_for_silence();
}

#[test]
fn a_damaged_file_is_found_before_anything_runs() {
    let (workspace, server, folder) = captured();
    let name = "criu/pages-1.img";
    let (file, aside) = (folder.join(name), workspace.path().join("aside"));
    let whole = file.metadata().unwrap();

    // Cut short, then made whole again: the time is another all the same.
    let bytes = fs::read(&file).unwrap();
    let open = || File::options().write(true).open(&file).unwrap();
    open().set_len(whole.len() - 1).unwrap();
    let reason = format!(
        "is {} bytes long instead of {}",
        whole.len() - 1,
        whole.len()
    );
    let error = refuse(&workspace, &file, &reason);
    assert!(
        error.contains("Hint: capture it again; `warmimg verify plain`"),
        "{error}"
    );
    is_told(&workspace, name, &reason, "size");
    let (_, error) = expect(108, &mut workspace.warmimg(["bench", "--image", "plain"]));
    assert!(error.contains(&reason), "{error}");
    fs::write(&file, &bytes).unwrap();
    refuse(&workspace, &file, "has changed since it was stored");

    // Another byte.
    let mut changed = bytes.clone();
    changed[100] ^= 1;
    fs::write(&file, &changed).unwrap();
    let error = refuse(&workspace, &file, "has changed since it was stored");
    assert!(
        error.contains("Hint: `warmimg verify plain` tells whether"),
        "{error}"
    );
    is_told(
        &workspace,
        name,
        "has another content than was stored",
        "content",
    );
    // With the time that it had, only its content tells.
    open().set_modified(whole.modified().unwrap()).unwrap();
    is_told(
        &workspace,
        name,
        "has another content than was stored",
        "content",
    );
    fs::write(&file, &bytes).unwrap();
    open().set_modified(whole.modified().unwrap()).unwrap();
    bring_back(&workspace, &server);

    // Gone, then a link out of the image to what it was.
    fs::rename(&file, &aside).unwrap();
    refuse(&workspace, &file, "is missing");
    is_told(&workspace, name, "is missing", "missing");
    symlink(&aside, &file).unwrap();
    refuse(&workspace, &file, "is no regular file");
    is_told(&workspace, name, "is no regular file", "no-file");
    fs::rename(&aside, &file).unwrap();
    bring_back(&workspace, &server);
    workspace.assert_clean();
}

#[test]
fn what_was_replaced_by_the_same_is_restored_again_once_verified() {
    let (workspace, server, folder) = captured();
    let whole = workspace.run(["verify"]);
    assert!(
        whole.starts_with("ok       plain (") && whole.lines().count() == 1,
        "{whole}"
    );

    // A file by its copy.
    let (file, aside) = (
        folder.join("criu/pages-1.img"),
        workspace.path().join("aside"),
    );
    fs::copy(&file, &aside).unwrap();
    fs::rename(&aside, &file).unwrap();
    refuse(&workspace, &file, "has changed since it was stored");
    let printed = workspace.run(["verify", "plain"]);
    let (first, second) = printed.split_once('\n').unwrap();
    assert_eq!(first, whole.trim_end());
    assert_eq!(
        second,
        "         restores expect these very files from now on\n"
    );
    assert_eq!(workspace.run(["verify"]), whole);
    bring_back(&workspace, &server);

    // The whole store.
    let (store, old) = (workspace.store(), workspace.path().join("old"));
    fs::rename(&store, &old).unwrap();
    expect(0, Command::new("cp").arg("-a").arg(&old).arg(&store));
    refuse(
        &workspace,
        &folder.join("manifest.json"),
        "has changed since it was stored",
    );
    workspace.run(["verify", "--all"]);
    bring_back(&workspace, &server);

    // A seal that is none.
    let seal = folder.join("seal.json");
    fs::write(&seal, "{").unwrap();
    let error = workspace.fail(108, ["restore", "-d", "plain"]);
    assert!(error.contains("seal.json is not valid: "), "{error}");
    workspace.run(["verify"]);
    // One that was not copied: sizes have to do.
    fs::remove_file(&seal).unwrap();
    bring_back(&workspace, &server);
    workspace.assert_clean();
}

#[test]
fn all_images_are_told_of_whatever_is_wrong_with_one() {
    let (workspace, server, folder) = captured();
    fs::write(folder.join("criu/left.tmp"), "").unwrap();
    expect(0, &mut server.capture(&workspace, &["--name", "other"]));
    let other = image(&workspace);
    let of = |folder: &Path| folder.file_name().unwrap().to_str().unwrap().to_owned();
    let json = |code: i32| {
        let (printed, _) = expect(code, &mut workspace.warmimg(["--json", "verify", "--all"]));
        let lines = printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let mut lines: Vec<Value> = lines.collect();
        assert_eq!(lines.len(), 2);
        if lines[0]["digest"] == of(&other) {
            lines.reverse();
        }
        lines
    };
    // What is not known is told of, and no damage.
    let lines = json(0);
    assert_eq!(lines[0]["unknown"], Value::from(vec!["criu/left.tmp"]));
    assert_eq!(lines[1]["unknown"], Value::Array(vec![]));
    let printed = workspace.run(["verify", "plain"]);
    assert!(
        printed.ends_with("\n         warning: criu/left.tmp is not part of it\n"),
        "{printed}"
    );

    // A manifest that says something else, then one that is none.
    let manifest = other.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for text in [text.replacen("accept", "Accept", 1), "{".to_owned()] {
        fs::write(&manifest, text).unwrap();
        let lines = json(108);
        assert_eq!(
            (&lines[0]["ok"], &lines[1]["ok"]),
            (&true.into(), &false.into())
        );
        let fault = &lines[1]["faults"][0];
        assert_eq!(
            (&fault["path"], &fault["kind"]),
            (&"manifest.json".into(), &"content".into())
        );
    }
    let error = workspace.fail(107, ["verify", "nothing"]);
    assert!(error.contains("no image is called"), "{error}");
    workspace.assert_clean();
}
