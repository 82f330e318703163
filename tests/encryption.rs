//! Images that are encrypted: nothing of them is on disk, and nobody without a key restores them.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::FileExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use serde_json::Value;

use crate::support::{
    Killed, Workspace, below_strace, describe, expect, finish, server::Server, servers, wait_until,
};

/// What is in the environment and the memory of each server here, and nowhere on disk.
const SECRET: &str = "xyzzy-plugh-2718281828";

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

    /// Restores the image, asks it and stops it.
    fn bring_back(&self, options: &[&str]) {
        let words = [&["restore", "-d"], options].concat();
        self.workspace.run(words);
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
fn keys(workspace: &Workspace, name: &str) -> (String, String) {
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
    let error = workspace.fail(121, ["restore", "-d", "shop"]);
    assert_eq!(
        error,
        "Error: the image shop is encrypted, and no identity was given\n\
         Hint: give it with --identity FILE, or name the file by WARMIMG_IDENTITY\n"
    );
    let (_, other) = keys(workspace, "other");
    let error = workspace.fail(121, ["restore", "-d", "shop", "--identity", &other]);
    assert!(
        error.starts_with("Error: the image shop is encrypted by another identity than was given"),
        "{error}"
    );
    let error = workspace.fail(2, ["inspect", "--identity", "/nowhere"]);
    assert!(
        error.contains("cannot read the key file /nowhere"),
        "{error}"
    );
    let error = workspace.fail(121, ["rehearse", "shop"]);
    assert!(error.contains("warmimg open shop --identity"), "{error}");
    assert!(!vault.is_mounted());

    // Its memory is mapped from what is open, which is its owner's alone.
    vault.bring_back(&["--identity", &vault.identity, "--memory", "map"]);
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
    let error = workspace.fail(119, ["close", "shop"]);
    assert!(error.contains("in use by shop-1"), "{error}");
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
    let error = workspace.fail(121, ["open", "--identity", &vault.identity]);
    assert!(error.contains("no passphrase was given"), "{error}");
    let wrong = workspace.write("wrong", "correct horse");
    let error = workspace.fail(121, ["open", "--passphrase-file", &wrong]);
    assert!(error.contains("by another passphrase"), "{error}");
    let opened = workspace.run([["open", "shop"], option].concat());
    assert!(opened.starts_with("Open: shop ("), "{opened}");
    vault.bring_back(&["shop"]);
    workspace.run(["close", "--all"]);
    workspace.assert_clean();
}

#[test]
fn what_is_not_what_was_encrypted_is_found() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    let path = vault.ciphertext();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    let identity = ["--identity", &vault.identity];
    // In the header of age, its MAC, the first chunk, and on to the last.
    let places = [3, 30, 80, 150, 190, 220].into_iter();
    let places = places.chain((1..8).map(|part| length * part / 8));
    for place in places.chain([length - 1]) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        let error = workspace.fail(108, [&["restore", "-d"][..], &identity].concat());
        assert!(error.contains("image.age is damaged"), "{place}: {error}");
        let output = finish(&mut workspace.warmimg(["verify"]));
        let printed = describe(&output);
        assert_eq!(output.status.code(), Some(108), "{place}: {printed}");
        assert!(printed.contains("image.age has another content"));
        file.write_all_at(&byte, place).unwrap();
        assert!(!vault.is_mounted());
    }
    // Cut short, at the end of a chunk as well.
    let whole = fs::read(&path).unwrap();
    let begin = whole.windows(5).position(|part| part == b"\n--- ").unwrap();
    let payload = begin + 5 + 43 + 1 + 16;
    for length in [0, 100, payload, payload + 65_552, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = workspace.fail(108, [&["restore", "-d"][..], &identity].concat());
        assert!(error.contains("image.age is damaged"), "{length}: {error}");
        workspace.fail(108, ["export", "-o", "damaged.age"]);
    }
    assert!(!workspace.path().join("damaged.age").exists());
    fs::write(&path, &whole).unwrap();
    vault.bring_back(&identity);
    // What is open is compared as any image is.
    let opened = vault.memory().join("images");
    let (pages, _) = expect(
        0,
        Command::new("find")
            .arg(&opened)
            .args(["-type", "f", "-name", "pages-*"]),
    );
    let mut pages = File::options()
        .write(true)
        .open(pages.lines().next().unwrap())
        .unwrap();
    pages.seek(SeekFrom::Start(5000)).unwrap();
    pages.write_all(b"changed").unwrap();
    let error = workspace.fail(108, ["restore", "-d"]);
    assert!(error.contains("has changed since it was stored"), "{error}");
    workspace.run(["close", "--all"]);
    vault.bring_back(&identity);
    workspace.run(["rm", "shop"]);
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
    let import = |options: &[&str]| {
        let mut import = workspace.warmimg([&["import"], options].concat());
        import.env("WARMIMG_STORE", &elsewhere);
        import
    };
    let (printed, _) = expect(0, &mut import(&["shop.tar.zst"]));
    assert!(printed.starts_with("Imported shop ("), "{printed}");
    fs::remove_dir_all(&elsewhere).unwrap();

    // And what age(1) encrypts is imported, with another key.
    let (public, other) = keys(workspace, "other");
    let mut age = Command::new("age");
    age.args(["-r", &public, "-o", "again.age"]).arg(&plain);
    expect(0, age.current_dir(workspace.path()));
    let identity = ["--identity", other.as_str()];
    let (_, error) = expect(121, &mut import(&["again.age"]));
    assert!(error.contains("again.age is encrypted, and no"), "{error}");
    let (_, error) = expect(
        121,
        &mut import(&["again.age", "--identity", &vault.identity]),
    );
    assert!(error.contains("by another identity"), "{error}");
    let (printed, _) = expect(0, &mut import(&[&["again.age"], &identity[..]].concat()));
    assert!(printed.starts_with("Imported shop ("), "{printed}");
    let (printed, _) = expect(0, &mut import(&[&["again.age"], &identity[..]].concat()));
    assert!(printed.starts_with("Already there: shop ("), "{printed}");
    let mut restore = workspace.warmimg(["restore", "-d", "shop"]);
    expect(0, restore.env("WARMIMG_STORE", &elsewhere));
    assert_eq!(vault.server.client.ask().unwrap(), ANSWER);
    for words in [&["stop", "--all"][..], &["rm", "shop"]] {
        expect(0, workspace.warmimg(words).env("WARMIMG_STORE", &elsewhere));
    }

    // What is cut short or damaged leaves nothing, be it from a pipe.
    let mut bytes = fs::read(&archive).unwrap();
    fs::write(workspace.path().join("cut.age"), &bytes[..bytes.len() / 2]).unwrap();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::write(workspace.path().join("bad.age"), &bytes).unwrap();
    for name in ["cut.age", "bad.age"] {
        let mut refused = import(&["-", "--identity", &vault.identity]);
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

#[test]
fn copies_open_it_once_and_a_killed_one_leaves_nothing() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    // Killed as it takes what it has opened among the images, and as it unpacks.
    for (step, at) in [("rename", 1), ("rename", 10), ("pwrite64", 2), ("mkdir", 3)] {
        let open = workspace.warmimg(["open", "--identity", &vault.identity]);
        let inject = format!("inject={step}:signal=KILL:when={at}");
        let options = ["-qq", "-o", "/dev/null", "-e", &inject];
        let output = finish(&mut below_strace(&open, &options));
        assert!(!output.status.success(), "{inject}: {}", describe(&output));
        assert_eq!(vault.image()["encrypted"]["open"], false, "{inject}");
        assert!(!vault.is_mounted(), "{inject}");
    }
    // The same for a capture.
    for (step, at) in [("rename", 2), ("clone3", 1), ("mkdir", 20)] {
        let capture = ["--name", "other", "--encrypt-to", &vault.recipient];
        let capture = vault.server.capture(workspace, &capture);
        let inject = format!("inject={step}:signal=KILL:when={at}");
        let options = ["-qq", "-o", "/dev/null", "-e", &inject];
        finish(&mut below_strace(&capture, &options));
        vault.server.wait_for_silence();
        vault.assert_hidden();
        workspace.run(["images"]);
        assert!(!vault.is_mounted(), "{inject}");
    }
    let open = || {
        let mut open = workspace.warmimg(["open", "shop", "--identity", &vault.identity]);
        Killed(open.stdout(Stdio::null()).spawn().unwrap())
    };
    let mut all: Vec<Killed> = (0..6).map(|_| open()).collect();
    for one in &mut all {
        assert_eq!(one.wait(), Some(0));
    }
    let opened = fs::read_dir(vault.memory().join("images")).unwrap();
    assert_eq!(opened.count(), 1);
    let staging = fs::read_dir(vault.memory().join("staging")).unwrap();
    assert_eq!(staging.count(), 0);
    vault.bring_back(&[]);
    workspace.run(["prune", "--keep", "0", "--all"]);
    assert!(!vault.is_mounted());
    workspace.assert_clean();
}

#[test]
fn memory_may_not_be_enough_or_not_there() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    let identity = ["--identity", &vault.identity];
    let open = [&["open", "shop"][..], &identity].concat();
    let output = finish(&mut workspace.without("sys_admin", &open));
    let printed = describe(&output);
    assert_eq!(output.status.code(), Some(108), "{printed}");
    assert!(printed.contains("cannot have a file system in memory"));
    // A small one that is there already is taken.
    fs::create_dir(vault.memory()).unwrap();
    let small = Some("size=6M,mode=0700");
    mount(
        Some("small"),
        &vault.memory(),
        Some("tmpfs"),
        MsFlags::empty(),
        small,
    )
    .unwrap();
    // Not empty, and so not unmounted.
    fs::create_dir_all(vault.memory().join("images/held")).unwrap();
    let error = workspace.fail(110, &open);
    assert!(
        error.contains("an open image is in memory, where"),
        "{error}"
    );
    let capture = ["--name", "other", "--encrypt-to", &vault.recipient];
    let (_, error) = expect(110, &mut vault.server.capture(workspace, &capture));
    assert!(
        error.starts_with("Error: there is not enough memory for the image\n"),
        "{error}"
    );
    vault.server.wait_for_silence();
    let _ = umount2(&vault.memory(), MntFlags::MNT_DETACH);
    vault.assert_hidden();
    vault.bring_back(&identity);
    workspace.run(["close", "--all"]);
    workspace.assert_clean();
}

#[test]
fn a_checkpoint_of_it_is_encrypted_too() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    workspace.run([
        "restore",
        "-d",
        "--identity",
        &vault.identity,
        "--memory",
        "map",
    ]);
    vault.server.client.ask().unwrap();
    let error = workspace.fail(2, ["checkpoint", "--pid", "shop-1"]);
    assert!(error.contains("the new image would not be"), "{error}");
    assert_eq!(vault.server.client.ask().unwrap(), ANSWER);
    let to = ["--encrypt-to", vault.recipient.as_str()];
    let checkpoint = ["checkpoint", "--pid", "shop-1", "--name", "later"];
    workspace.run([&checkpoint[..], &to].concat());
    vault.server.wait_for_silence();
    vault.assert_hidden();
    workspace.run(["rm", "shop"]);
    assert!(!vault.is_mounted());
    vault.bring_back(&["later", "--identity", &vault.identity]);
    workspace.run(["rm", "later"]);
    workspace.assert_clean();
}

#[test]
fn warm_ones_are_rehearsed_and_compared_in_memory() {
    let vault = Vault::new();
    let workspace = &vault.workspace;
    let file = workspace.write("recipients", &format!("# mine\n{}\n", vault.recipient));
    vault.capture("warm", &["--at", "warm", "--encrypt-to", &file]);
    vault.assert_hidden();
    assert!(!vault.is_mounted());
    workspace.run(["open", "--identity", &vault.identity]);
    let image = vault.image();
    assert!(image["manifest"]["working_set"]["touched_pages"].as_u64() > Some(0));
    let error = workspace.fail(2, ["rehearse"]);
    assert!(error.contains("cannot be rehearsed"), "{error}");
    vault.bring_back(&[]);
    vault.capture("best", &["--at", "auto", "--encrypt-to", &file]);
    vault.assert_hidden();
    vault.bring_back(&["best", "--identity", &vault.identity]);
    let told = workspace.run(["diff", "warm", "best"]);
    assert!(told.starts_with("- warm ("), "{told}");
    workspace.run(["close", "--all"]);
    let error = workspace.fail(121, ["diff", "warm", "best"]);
    assert!(error.contains("is encrypted"), "{error}");
    workspace.assert_clean();
}

#[test]
fn run_makes_and_opens_it() {
    let vault = Vault::new();
    let workspace = &vault.workspace;
    let start = |options: &[&str], said: &str| {
        let words = [&["--json", "run", "--name", "shop"], options, &["--"]].concat();
        let words = words.iter().copied();
        let words = words.chain(vault.server.command.iter().map(String::as_str));
        let mut run = workspace.warmimg(words);
        run.envs(vault.server.environment.iter().cloned());
        let log = workspace.path().join("run.log");
        let mut running = Killed(run.stdout(File::create(&log).unwrap()).spawn().unwrap());
        wait_until(said, || {
            let mut text = String::new();
            File::open(&log).unwrap().read_to_string(&mut text).unwrap();
            match text.contains(said) {
                true => Ok(()),
                false => Err(text),
            }
        });
        assert_eq!(vault.server.client.ask_until_answered(), ANSWER);
        running.signal(Signal::SIGTERM);
        running.wait();
        vault.server.wait_for_silence();
        vault.assert_hidden();
    };
    let to = ["--encrypt-to", vault.recipient.as_str()];
    let identity = ["--identity", vault.identity.as_str()];
    start(&to, "\"event\":\"captured\"");
    assert!(!vault.is_mounted());
    start(&to, "\"reason\":\"closed\"");
    start(&identity, "\"event\":\"restored\"");
    start(&[], "\"event\":\"restored\"");
    // It is not replaced by one that is not encrypted.
    let before = vault.image()["digest"].clone();
    start(&["--at", "listen"], "\"event\":\"not-captured\"");
    assert_eq!(vault.image()["digest"], before);
    start(
        &[&["--at", "listen"], &to[..]].concat(),
        "\"event\":\"captured\"",
    );
    assert_ne!(vault.image()["digest"], before);
    workspace.run(["close", "--all"]);
    workspace.assert_clean();
}
