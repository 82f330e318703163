//! What makes, opens and replaces encrypted images, beside `capture` and `restore`.

use std::{
    fs::{self, File},
    io::Read as _,
};

use nix::sys::signal::Signal;

use super::{ANSWER, NO_KEY, Vault};
use crate::support::{Killed, wait_until};

#[test]
fn a_checkpoint_of_it_is_encrypted_too() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    workspace.run(vault.keyed(&["restore", "-d", "--memory", "map"]));
    vault.server.client.ask().unwrap();
    let checkpoint = ["checkpoint", "--pid", "shop-1"];
    vault.refused(2, &checkpoint, "the new image would not be");
    assert_eq!(vault.server.client.ask().unwrap(), ANSWER);
    let to = ["--encrypt-to", vault.recipient.as_str()];
    workspace.run([&checkpoint[..], &["--name", "later"], &to].concat());
    vault.server.wait_for_silence();
    vault.assert_hidden();
    workspace.run(["rm", "shop"]);
    assert!(!vault.is_mounted());
    vault.bring_back(&vault.keyed(&["later"]));
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
    workspace.run(vault.keyed(&["open"]));
    assert!(vault.touched_pages() > 0);
    vault.bring_back(&[]);
    vault.capture("best", &["--at", "auto", "--encrypt-to", &file]);
    vault.assert_hidden();
    vault.bring_back(&vault.keyed(&["best"]));
    let told = workspace.run(["diff", "warm", "best"]);
    assert!(told.starts_with("- warm ("), "{told}");
    workspace.run(["close", "--all"]);
    vault.refused(121, &["diff", "warm", "best"], "is encrypted");
    workspace.assert_clean();
}

#[test]
fn it_is_rehearsed_again_with_its_keys() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    workspace.run(vault.keyed(&["restore", "-d", "--memory", "map"]));
    workspace.run(["stop", "--all"]);
    let before = vault.image()["digest"].clone();
    assert_eq!(vault.touched_pages(), 0);
    workspace.run(["close", "--all"]);
    let said = "shop is encrypted, and the new image would not be";
    vault.refused(2, &vault.keyed(&["rehearse"]), said);
    workspace.run(["close", "--all"]);
    let to = ["--encrypt-to", vault.recipient.as_str()];
    let rehearse = [&["rehearse", "shop"], &to[..]].concat();
    assert_eq!(workspace.fail(121, &rehearse), NO_KEY);
    workspace.run(vault.keyed(&rehearse));
    vault.assert_hidden();
    assert_ne!(vault.image()["digest"], before);
    assert!(vault.touched_pages() > 0);
    // It is open still, and the only one; once more changes nothing that counts.
    vault.bring_back(&[]);
    workspace.run(&rehearse);
    assert_eq!(workspace.run(["--json", "images"]).lines().count(), 1);
    let opened = fs::read_dir(vault.memory().join("images")).unwrap();
    assert_eq!(opened.count(), 1);
    workspace.run(["close", "shop"]);
    assert!(!vault.is_mounted());
    vault.bring_back(&vault.keyed(&["shop"]));
    workspace.run(["rm", "shop"]);

    // A passphrase opens and encrypts; what is not encrypted stays so.
    let file = workspace.write("passphrase", "correct horse battery");
    let option = ["--passphrase-file", file.as_str()];
    vault.capture("shop", &option);
    workspace.run([&["rehearse"], &option[..]].concat());
    vault.assert_hidden();
    assert_eq!(vault.image()["encrypted"]["key"], "passphrase");
    workspace.run(["rm", "shop"]);
    vault.capture("plain", &[]);
    let rehearse = [&["rehearse", "plain"], &to[..]].concat();
    vault.refused(2, &rehearse, "the image plain is not encrypted");
    assert!(!vault.is_mounted());
    workspace.assert_clean();
}

#[test]
fn it_is_measured_and_profiled_with_its_key() {
    let vault = Vault::with_image();
    let workspace = &vault.workspace;
    let few = ["--runs", "1", "--warmup-runs", "0", "--requests", "1"];
    let bench = [
        &["bench", "--image", "shop", "--baseline", "criu"],
        &few[..],
    ]
    .concat();
    let told = workspace.run(vault.keyed(&bench));
    assert!(told.contains("restored"), "{told}");
    vault.assert_hidden();
    workspace.run(["close", "--all"]);
    let profile = [
        "profile",
        "--restore=shop",
        "--format",
        "json",
        "--runs",
        "2",
    ];
    let told = workspace.run(vault.keyed(&profile));
    assert!(told.contains("\"type\":\"profile\""), "{told}");
    vault.assert_hidden();
    // It is open since.
    workspace.run(profile);
    workspace.run(bench);
    workspace.run(["close", "--all"]);
    assert!(!vault.is_mounted());
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
