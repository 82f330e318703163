//! Encrypted images that are damaged, opened at once, by one that is killed, or where there is no room.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Vault;
use crate::support::{Killed, below_strace, describe, expect, finish};

#[test]
fn what_is_not_what_was_encrypted_is_found() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    let path = vault.ciphertext();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    let restore = vault.keyed(&["restore", "-d"]);
    // In the header of age, its MAC, the first chunk, and on to the last.
    let places = [3, 30, 80, 150, 190, 220].into_iter();
    let places = places.chain((1..8).map(|part| length * part / 8));
    for place in places.chain([length - 1]) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 4], place).unwrap();
        vault.refused(108, &restore, "image.age is damaged");
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
        vault.refused(108, &restore, "image.age is damaged");
        workspace.fail(108, ["export", "-o", "damaged.age"]);
    }
    assert!(!workspace.path().join("damaged.age").exists());
    fs::write(&path, &whole).unwrap();
    vault.bring_back(&vault.keyed(&[]));
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
    let said = "has changed since it was stored";
    vault.refused(108, &["restore", "-d"], said);
    workspace.run(["close", "--all"]);
    vault.bring_back(&vault.keyed(&[]));
    workspace.run(["rm", "shop"]);
    workspace.assert_clean();
}

#[test]
fn copies_open_it_once_and_a_killed_one_leaves_nothing() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    // Killed as it takes what it has opened among the images, and as it unpacks.
    for (step, at) in [("rename", 1), ("rename", 10), ("pwrite64", 2), ("mkdir", 3)] {
        let open = workspace.warmimg(vault.keyed(&["open"]));
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
        let mut open = workspace.warmimg(vault.keyed(&["open", "shop"]));
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
    let open = vault.keyed(&["open", "shop"]);
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
    vault.refused(110, &open, "an open image is in memory, where");
    let capture = ["--name", "other", "--encrypt-to", &vault.recipient];
    let (_, error) = expect(110, &mut vault.server.capture(workspace, &capture));
    assert!(
        error.starts_with("Error: there is not enough memory for the image\n"),
        "{error}"
    );
    vault.server.wait_for_silence();
    let _ = umount2(&vault.memory(), MntFlags::MNT_DETACH);
    vault.assert_hidden();
    vault.bring_back(&vault.keyed(&[]));
    workspace.run(["close", "--all"]);
    workspace.assert_clean();
}
