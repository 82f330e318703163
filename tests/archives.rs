//! Images that are sent: exported, imported, and restored where they arrive.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Killed, Workspace, expect, server::Server, servers, wait_until};

/// All paths below a folder, but the cache of CRIU's kernel data.
fn listing(folder: &Path) -> Vec<String> {
    let (found, _) = expect(0, Command::new("find").arg(folder));
    let is_kept = |line: &&str| !line.contains("/kerndat");
    let mut found: Vec<_> = found.lines().filter(is_kept).map(str::to_owned).collect();
    found.sort();
    found
}

/// Brings the only image back, with its memory in each way.
fn bring_back(workspace: &Workspace, server: &Server, expected: &str) {
    for memory in ["map", "copy"] {
        workspace.run(["restore", "-d", "--memory", memory]);
        assert_eq!(server.client.ask().unwrap(), expected, "{memory}");
        workspace.run(["stop", "--all"]);
        server.wait_for_silence();
    }
}

#[test]
fn an_image_answers_where_it_arrives() {
    let workspace = Workspace::new();
    let server = servers::express();
    let cold = server.start_cold(&workspace);
    let expected = server.client.ask_until_answered();
    drop(cold);
    server.wait_for_silence();
    expect(0, &mut server.capture(&workspace, &["--name", "shop"]));
    let captured: Value = serde_json::from_str(&workspace.run(["--json", "inspect"])).unwrap();

    let exported = workspace.run(["--json", "export", "shop", "-o", "shop.tar.zst"]);
    let exported: Value = serde_json::from_str(&exported).unwrap();
    let archive = workspace.path().join("shop.tar.zst");
    let written = archive.metadata().unwrap().len();
    assert_eq!(
        (
            &exported["type"],
            &exported["digest"],
            &exported["archive_bytes"]
        ),
        (&"export".into(), &captured["digest"], &written.into())
    );
    assert_eq!(exported["image_bytes"], captured["image_bytes"]);

    // Here again, from the file and from a pipe.
    workspace.run(["rm", "shop"]);
    let empty = listing(&workspace.store());
    let imported: Value =
        serde_json::from_str(&workspace.run(["--json", "import", "shop.tar.zst"])).unwrap();
    assert_eq!(imported["digest"], captured["digest"]);
    assert_eq!(imported["names"], captured["names"]);
    assert_eq!(imported["existed"], false);
    assert!(workspace.run(["verify"]).starts_with("ok       shop ("));
    bring_back(&workspace, &server, &expected);
    let mut sender = workspace.warmimg(["export"]);
    let mut sender = sender.stdout(Stdio::piped()).spawn().unwrap();
    let pipe = sender.stdout.take().unwrap();
    let mut receiver = workspace.warmimg(["import", "-", "--name", "other"]);
    receiver.env("WARMIMG_STORE", workspace.path().join("elsewhere"));
    let received = receiver.stdin(pipe).output().unwrap();
    assert!(received.status.success() && sender.wait().unwrap().success());
    let printed = String::from_utf8(received.stdout).unwrap();
    assert!(printed.starts_with("Imported other ("), "{printed}");
    let printed = workspace.run(["import", "shop.tar.zst"]);
    assert!(printed.starts_with("Already there: shop ("), "{printed}");
    workspace.run(["rm", "shop"]);

    // A part of it, then all of it.
    let cut = workspace.path().join("cut");
    fs::copy(&archive, &cut).unwrap();
    let file = File::options().write(true).open(&cut).unwrap();
    file.set_len(written * 9 / 10).unwrap();
    let error = workspace.fail(118, ["import", "cut"]);
    assert!(error.contains("cut ends too early"), "{error}");
    assert_eq!(listing(&workspace.store()), empty);
    let error = workspace.fail(118, ["import", "--resume", "cut"]);
    assert!(error.contains("Hint: what has arrived was kept"), "{error}");
    assert_ne!(listing(&workspace.store()), empty);
    let printed = workspace.run(["import", "--resume", "shop.tar.zst"]);
    assert!(printed.contains(" of it had arrived before"), "{printed}");
    bring_back(&workspace, &server, &expected);
    workspace.run(["rm", "shop"]);
    assert_eq!(listing(&workspace.store()), empty);
    workspace.assert_clean();
}

#[test]
fn what_cannot_be_exported_or_imported_says_so() {
    let workspace = Workspace::new();
    let server = servers::accept_loop(&workspace, &[]);
    expect(0, &mut server.capture(&workspace, &["--name", "plain"]));
    let before = listing(workspace.path());
    let error = workspace.fail(107, ["export", "nothing", "-o", "x"]);
    assert!(error.contains("no image is called"), "{error}");
    let error = workspace.fail(100, ["export", "-o", "nowhere/x"]);
    assert!(error.contains("cannot write nowhere/x"), "{error}");
    let error = workspace.fail(2, ["--json", "export"]);
    assert!(error.contains("name a file with -o FILE"), "{error}");
    let error = workspace.fail(2, ["import", "nothing"]);
    assert!(error.contains("cannot read nothing"), "{error}");
    let error = workspace.fail(118, ["import", "/etc/passwd"]);
    assert!(error.contains("is no archive of an image"), "{error}");
    // A disk that is full leaves nothing, nor does a reader that goes.
    let error = workspace.fail(110, ["export", "-o", "/dev/full"]);
    assert!(error.contains("cannot write /dev/full"), "{error}");
    let export = workspace.warmimg(["export"]);
    let line = format!("{} export", export.get_program().to_str().unwrap());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]);
    terminal.env("WARMIMG_STORE", workspace.store());
    let (shown, _) = expect(2, &mut terminal);
    assert!(
        shown.contains("an archive is nothing for a terminal"),
        "{shown}"
    );
    assert_eq!(listing(workspace.path()), before);

    workspace.run(["export", "-o", "plain"]);
    let exported = fs::read(workspace.path().join("plain")).unwrap();
    workspace.run(["rm", "plain"]);
    let before = listing(&workspace.store());
    let error = workspace.fail(118, ["import", "--max-size", "1K", "plain"]);
    assert!(
        error.contains("; 1024 are allowed\nHint: allow more"),
        "{error}"
    );

    // Ended in the middle: by a signal, nothing is left at once.
    let mut waiting = workspace.warmimg(["import", "-"]);
    let mut waiting = Killed(waiting.stdin(Stdio::piped()).spawn().unwrap());
    let mut pipe = waiting.0.stdin.take().unwrap();
    std::io::Write::write_all(&mut pipe, &exported[..exported.len() - 1]).unwrap();
    wait_until("the import to begin", || {
        let staging = fs::read_dir(workspace.store().join("staging")).unwrap();
        match staging.count() {
            0 => Err("nothing is staged".to_owned()),
            _ => Ok(()),
        }
    });
    waiting.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(waiting.wait(), Some(130));
    assert_eq!(listing(&workspace.store()), before);
    workspace.assert_clean();
}
