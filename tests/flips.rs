//! Single bits of an image that are others than were stored, anywhere in it.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use warmimg::store::{Digest, Store};

use crate::support::{Workspace, expect, server::Server, servers};

/// How many bits are flipped, unless `WARMIMG_FLIPS` says; `WARMIMG_SEED` chooses others.
const FLIPS: u64 = 300;

/// Of so many, one is also tried with the program.
const WITH_PROGRAM: u64 = 10;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |text| text.parse().unwrap())
}

/// All files of an image, with their sizes, in a fixed order.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            match (metadata.is_dir(), metadata.is_file()) {
                (true, _) => folders.push(entry.path()),
                (_, true) if metadata.len() > 0 => found.push((entry.path(), metadata.len())),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// A place in the image: every file in turn of two, and every byte in the others.
fn choose(random: &mut Random, files: &[(PathBuf, u64)], by_file: bool) -> (PathBuf, u64) {
    if by_file {
        let (path, len) = &files[random.below(files.len() as u64) as usize];
        return (path.clone(), random.below(*len));
    }
    let mut at = random.below(files.iter().map(|(_, len)| len).sum());
    for (path, len) in files {
        match at.checked_sub(*len) {
            Some(rest) => at = rest,
            None => return (path.clone(), at),
        }
    }
    unreachable!("it is below the sum")
}

fn flip(file: &File, at: u64, bit: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

/// Restores by the program: it either refuses, or, where only the seal was damaged in what does not
/// matter, the server answers.
fn try_to_restore(workspace: &Workspace, server: &Server, may_answer: bool, what: &str) {
    let output = workspace.warmimg(["restore", "-d", "shop"]).output();
    let output = output.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) if may_answer => {
            server.client.ask_until_answered();
            workspace.run(["stop", "--all"]);
            server.wait_for_silence();
        }
        Some(108) => assert!(error.starts_with("Error: "), "{what}: {error}"),
        other => panic!("{what}: {other:?}: {error}"),
    }
    let instances = workspace.store().join("instances");
    assert_eq!(instances.read_dir().unwrap().count(), 0, "{what}");
}

#[test]
fn any_flipped_bit_is_found() {
    let workspace = Workspace::new();
    let server = servers::express();
    expect(0, &mut server.capture(&workspace, &["--name", "shop"]));
    let store = Store::open(&workspace.store()).unwrap();
    let digest: Digest = store.locate("shop").unwrap();
    let folder = store.find(Some("shop")).unwrap().folder().to_owned();
    let files = files(&folder);
    let (count, seed) = (number("WARMIMG_FLIPS", FLIPS), number("WARMIMG_SEED", 1));
    let (mut random, mut found, mut healed) = (Random(seed), 0, 0);
    for turn in 0..count {
        let (path, at) = choose(&mut random, &files, turn % 2 == 0);
        let bit = random.below(8);
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        let what = format!("seed {seed}, turn {turn}: bit {bit} of byte {at} of {name}");
        let is_seal = name == "seal.json";
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let before = file.metadata().unwrap();
        flip(&file, at, bit);

        // Written to through the kernel, the file has another time, which a restore sees.
        let checked = store.find(Some("shop")).and_then(|image| image.check());
        assert!(checked.is_err() || is_seal, "{what}");
        if turn % WITH_PROGRAM == 0 {
            try_to_restore(&workspace, &server, is_seal, &what);
        }
        // A medium that decays leaves the time as it was.
        file.set_modified(before.modified().unwrap()).unwrap();
        let verified = store.verify(&digest).unwrap();
        if is_seal {
            // What identifies the files is in no digest: it is written anew.
            assert!(verified.is_whole() && verified.resealed, "{what}");
            assert_ne!(path.metadata().unwrap().ino(), before.ino(), "{what}");
            healed += 1;
            continue;
        }
        let told = verified.faults.iter().any(|(path, _)| path == name);
        assert!(told, "{what}: {:?}", verified.faults);
        found += 1;
        flip(&file, at, bit);
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    println!(
        "{count} bits of {} files, seed {seed}: {found} found, {healed} healed",
        files.len()
    );
    assert_eq!(found + healed, count);
    workspace.run(["verify", "shop"]);
    workspace.run(["restore", "-d", "shop"]);
    server.client.ask_until_answered();
    workspace.run(["stop", "--all"]);
    server.wait_for_silence();
    workspace.assert_clean();
}
