//! Images that are encrypted: nothing of them is on disk, and nobody without a key restores them.

mod faults;
mod uses;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Workspace, describe, expect, server::Server, servers};

/// What is in the environment and the memory of each server here, and nowhere on disk.
const SECRET: &str = "xyzzy-plugh-2718281828";

/// What is said without a key.
const NO_KEY: &str = "Error: the image shop is encrypted, and no identity was given\n\
                      Hint: give it with --identity FILE, or name the file by WARMIMG_IDENTITY\n";

/// What the server answers.
const ANSWER: &str = "200 Hello from Express";

/// A folder with a store and keys, and a server that has something to hide.
struct Vault {
    workspace: Workspace,
    server: Server,
    recipient: String,
    identity: String,
}

impl Vault {
    fn new() -> Self {
        let workspace = Workspace::new();
        let (recipient, identity) = keys(&workspace, "key");
        Self {
            server: servers::express().environment("SHOP_TOKEN", SECRET),
            workspace,
            recipient,
            identity,
        }
    }

    /// With an encrypted image called `shop`, which is closed.
    fn with_image() -> Self {
        let vault = Self::new();
        vault.capture("shop", &["--encrypt-to", &vault.recipient]);
        vault
    }

    fn capture(&self, name: &str, options: &[&str]) {
        let options = [&["--name", name], options].concat();
        expect(0, &mut self.server.capture(&self.workspace, &options));
        self.server.wait_for_silence();
    }

    /// Words of a command, and the key.
    fn keyed<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [words, &["--identity", &self.identity]].concat()
    }

    /// Runs a command that must fail with `code`, and say this.
    fn refused(&self, code: i32, words: &[&str], said: &str) {
        let error = self.workspace.fail(code, words);
        assert!(error.contains(said), "{words:?}: {error}");
    }

    /// Restores the image, asks it and stops it.
    fn bring_back(&self, options: &[&str]) {
        self.workspace.run([&["restore", "-d"], options].concat());
        assert_eq!(self.server.client.ask().unwrap(), ANSWER);
        self.workspace.run(["stop", "--all"]);
        self.server.wait_for_silence();
    }

    fn image(&self) -> Value {
        let images = self.workspace.run(["--json", "images"]);
        serde_json::from_str(images.lines().next().unwrap()).unwrap()
    }

    fn ciphertext(&self) -> PathBuf {
        let digest = self.image()["digest"].as_str().unwrap().to_owned();
        let folder = self.workspace.store().join("encrypted").join(digest);
        folder.join("image.age")
    }

    /// What is known of its working set, if it is open.
    fn touched_pages(&self) -> u64 {
        let image = self.image();
        let touched = &image["manifest"]["working_set"]["touched_pages"];
        touched.as_u64().unwrap_or(0)
    }

    fn memory(&self) -> PathBuf {
        self.workspace.store().join("memory")
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(self.memory().to_str().unwrap())
    }

    /// Asserts that the secret is in no file of the store that is on disk.
    fn assert_hidden(&self) {
        for path in on_disk(&self.workspace.store()) {
            let bytes = fs::read(&path).unwrap();
            let mut parts = bytes.windows(SECRET.len());
            let found = parts.any(|part| part == SECRET.as_bytes());
            assert!(!found, "{} has the secret", path.display());
        }
    }
}

/// Makes a pair of keys by age-keygen(1); returns the public one and the file of the secret one.
pub fn keys(workspace: &Workspace, name: &str) -> (String, String) {
    let path = workspace.path().join(name).display().to_string();
    expect(0, Command::new("age-keygen").args(["-o", &path]));
    let (public, _) = expect(0, Command::new("age-keygen").args(["-y", &path]));
    (public.trim().to_owned(), path)
}

/// The files below a folder that are on the same file system.
fn on_disk(folder: &Path) -> Vec<PathBuf> {
    let mut find = Command::new("find");
    let (found, _) = expect(0, find.arg(folder).args(["-xdev", "-type", "f"]));
    found.lines().map(PathBuf::from).collect()
}

#[test]
fn it_is_opened_once_and_restored_as_any_other() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    vault.assert_hidden();
    assert!(!vault.is_mounted());
    let listed = workspace.run(["images"]);
    assert!(listed.contains("(encrypted)\n"), "{listed}");
    assert!(!listed.contains("node"), "{listed}");
    let image = vault.image();
    assert_eq!(image["encrypted"]["open"], false);
    assert!(image.get("manifest").is_none());

    // Without its key, and with another.
    let (_, other) = keys(workspace, "other");
    for words in [
        &["restore", "-d", "shop"][..],
        &["rehearse", "shop"],
        &["bench", "--image", "shop"],
        &["profile", "--restore=shop"],
    ] {
        assert_eq!(workspace.fail(121, words), NO_KEY, "{words:?}");
        let words = [words, &["--identity", &other]].concat();
        let said = "Error: the image shop is encrypted by another identity than was given";
        vault.refused(121, &words, said);
    }
    let nowhere = ["inspect", "--identity", "/nowhere"];
    vault.refused(2, &nowhere, "cannot read the key file /nowhere");
    assert!(!vault.is_mounted());

    // Its memory is mapped from what is open, which is its owner's alone.
    vault.bring_back(&vault.keyed(&["--memory", "map"]));
    assert_eq!(vault.image()["encrypted"]["open"], true);
    assert!(vault.is_mounted());
    let mode = vault.memory().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    vault.assert_hidden();
    vault.bring_back(&["--memory", "map"]);
    vault.bring_back(&["--memory", "copy"]);
    // A view of it is in memory as well.
    let port = crate::support::free_port().to_string();
    let moved = format!("{port}:{}", vault.server.environment[0].1);
    workspace.run(["restore", "-d", "--publish", &moved]);
    vault.assert_hidden();
    let printed = workspace.run(["inspect"]);
    assert!(printed.contains("SHOP_TOKEN"), "{printed}");
    vault.refused(119, &["close", "shop"], "in use by shop-1");
    workspace.fail(119, ["rm", "shop"]);
    workspace.run(["stop", "--all"]);

    // It is verified whole if it is open, and as far as possible if not.
    let verified = workspace.run(["verify"]);
    assert!(!verified.contains("it is encrypted"), "{verified}");
    workspace.run(["close", "shop"]);
    let verified = workspace.run(["verify"]);
    assert!(verified.contains("only what is encrypted"), "{verified}");
    assert!(!vault.is_mounted());
    workspace.fail(121, ["restore", "-d", "shop"]);
    let mut restore = workspace.warmimg(["restore", "-d"]);
    expect(0, restore.env("WARMIMG_IDENTITY", &vault.identity));
    workspace.run(["stop", "--all"]);
    workspace.run(["rm", "shop"]);
    assert!(!vault.is_mounted());
    assert!(on_disk(&workspace.store().join("encrypted")).is_empty());
    workspace.assert_clean();
}

#[test]
fn a_passphrase_does_as_well() {
    let vault = Vault::new();
    let workspace = &vault.workspace;
    let file = workspace.write("passphrase", "correct horse battery\n");
    let option = ["--passphrase-file", &file];
    let empty = workspace.write("empty", "");
    let mut bad = vault
        .server
        .capture(workspace, &["--passphrase-file", &empty]);
    let (_, error) = expect(2, &mut bad);
    assert!(error.contains("there is no passphrase in"), "{error}");
    let mut bad = vault.server.capture(workspace, &["--encrypt-to", "me"]);
    let (_, error) = expect(2, &mut bad);
    assert!(error.contains("\"me\" is neither a recipient"), "{error}");
    vault.capture("shop", &option);
    vault.assert_hidden();
    vault.refused(121, &vault.keyed(&["open"]), "no passphrase was given");
    let wrong = workspace.write("wrong", "correct horse");
    let open = ["open", "--passphrase-file", &wrong];
    vault.refused(121, &open, "by another passphrase");
    let opened = workspace.run([["open", "shop"], option].concat());
    assert!(opened.starts_with("Open: shop ("), "{opened}");
    vault.bring_back(&["shop"]);
    workspace.run(["close", "--all"]);
    workspace.assert_clean();
}

#[test]
fn it_is_sent_as_it_is() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    workspace.run(["export", "shop", "-o", "shop.age"]);
    let archive = workspace.path().join("shop.age");
    assert!(fs::read(&archive).unwrap() == fs::read(vault.ciphertext()).unwrap());
    let mode = archive.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // age(1) decrypts it to an ordinary archive.
    let mut age = Command::new("age");
    let plain = workspace.path().join("shop.tar.zst");
    age.args(["--decrypt", "-i", &vault.identity, "-o"])
        .arg(&plain);
    expect(0, age.arg(&archive));
    let elsewhere = workspace.path().join("elsewhere");
    let there = |words: &[&str]| {
        let mut command = workspace.warmimg(words);
        command.env("WARMIMG_STORE", &elsewhere);
        command
    };
    let import = |options: &[&str], said: &str| {
        let (printed, _) = expect(0, &mut there(&[&["import"], options].concat()));
        assert!(printed.starts_with(said), "{printed}");
    };
    import(&["shop.tar.zst"], "Imported shop (");
    fs::remove_dir_all(&elsewhere).unwrap();

    // And what age(1) encrypts is imported, with another key.
    let (public, other) = keys(workspace, "other");
    let mut age = Command::new("age");
    age.args(["-r", &public, "-o", "again.age"]).arg(&plain);
    expect(0, age.current_dir(workspace.path()));
    for (options, said) in [
        (&[][..], "again.age is encrypted, and no"),
        (&["--identity", &vault.identity], "by another identity"),
    ] {
        let words = [&["import", "again.age"], options].concat();
        let (_, error) = expect(121, &mut there(&words));
        assert!(error.contains(said), "{error}");
    }
    let identity = ["again.age", "--identity", &other];
    import(&identity, "Imported shop (");
    import(&identity, "Already there: shop (");
    expect(0, &mut there(&["restore", "-d", "shop"]));
    assert_eq!(vault.server.client.ask().unwrap(), ANSWER);
    for words in [&["stop", "--all"][..], &["rm", "shop"]] {
        expect(0, &mut there(words));
    }

    // What is cut short or damaged leaves nothing, be it from a pipe.
    let mut bytes = fs::read(&archive).unwrap();
    fs::write(workspace.path().join("cut.age"), &bytes[..bytes.len() / 2]).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::write(workspace.path().join("bad.age"), &bytes).unwrap();
    for name in ["cut.age", "bad.age"] {
        let mut refused = there(&vault.keyed(&["import", "-"]));
        let archive = File::open(workspace.path().join(name)).unwrap();
        let mut cat = Command::new("cat")
            .stdin(archive)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        refused.stdin(cat.stdout.take().unwrap());
        let output = refused.output().unwrap();
        assert_eq!(output.status.code(), Some(108), "{}", describe(&output));
        assert!(describe(&output).contains("standard input is damaged"));
        // The pipe is read by nobody any more.
        drop(refused);
        cat.wait().unwrap();
        assert!(on_disk(&elsewhere.join("encrypted")).is_empty());
        assert!(!elsewhere.join("memory").exists());
    }
    workspace.assert_clean();
}
