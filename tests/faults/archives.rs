//! Imports, exports and removals that are killed, or whose system calls fail.

use std::{collections::BTreeSet, fs};

use super::{Ground, fail_each_prepared, kill_each_prepared};
use crate::support::expect;

const ARCHIVE: &str = "other.tar.zst";

/// Makes sure that there is an archive, and no image, of another capture.
fn archive(ground: &Ground) {
    if !ground.workspace.path().join(ARCHIVE).exists() {
        expect(0, &mut ground.capture());
        ground.workspace.run(["export", "other", "-o", ARCHIVE]);
    }
    // An import may have been killed when all was done, or all but the name.
    ground.workspace.run(["restore", "-d", "base"]);
    ground.workspace.run(["prune", "--all", "--keep", "0"]);
    ground.clean_up();
}

/// Makes sure that there is an image that can be removed.
fn removable(ground: &Ground) {
    archive(ground);
    ground.workspace.run(["import", ARCHIVE]);
}

/// Makes sure that there is a whole archive of what is exported.
fn exported(ground: &Ground) {
    let path = ground.workspace.path().join(ARCHIVE);
    match path.exists() {
        false => drop(ground.workspace.run(["export", "base", "-o", ARCHIVE])),
        // Of the same image: whole, and known.
        true => drop(ground.workspace.run(["import", ARCHIVE])),
    }
}

fn has_other(ground: &Ground) -> bool {
    ground.workspace.run(["images"]).contains("other")
}

/// What is in the folder that archives are written to.
fn files(ground: &Ground) -> BTreeSet<String> {
    let entries = fs::read_dir(ground.workspace.path()).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| name(entry.unwrap())).collect()
}

#[test]
fn an_import_that_is_killed_leaves_nothing() {
    kill_each_prepared("imports killed", archive, |ground| {
        ground.workspace.warmimg(["import", ARCHIVE])
    });
}

#[test]
fn an_import_whose_calls_fail_leaves_nothing() {
    let import = |ground: &Ground| ground.workspace.warmimg(["import", ARCHIVE]);
    let what = "imports with a call that fails";
    fail_each_prepared(what, archive, import, |ground, has_worked| {
        assert!(!has_worked || has_other(ground));
    });
}

#[test]
fn a_removal_that_is_killed_leaves_nothing() {
    kill_each_prepared("removals killed", removable, |ground| {
        ground.workspace.warmimg(["rm", "other"])
    });
}

#[test]
fn a_removal_whose_calls_fail_can_be_tried_again() {
    let remove = |ground: &Ground| ground.workspace.warmimg(["rm", "other"]);
    let what = "removals with a call that fails";
    fail_each_prepared(what, removable, remove, |ground, has_worked| {
        assert!(!has_worked || !has_other(ground));
    });
}

#[test]
fn an_export_that_is_killed_leaves_the_archive_as_it_was() {
    kill_each_prepared("exports killed", exported, |ground| {
        let words = ["export", "base", "-o", ARCHIVE];
        ground.workspace.warmimg(words)
    });
}

#[test]
fn an_export_whose_calls_fail_leaves_the_archive_as_it_was() {
    let export = |ground: &Ground| {
        let words = ["export", "base", "-o", ARCHIVE];
        ground.workspace.warmimg(words)
    };
    let what = "exports with a call that fails";
    fail_each_prepared(what, exported, export, |ground, _| {
        // The archive is read before the next try; nothing is beside it.
        let expected = [ARCHIVE, "counts", "store"].map(str::to_owned);
        assert_eq!(files(ground), BTreeSet::from(expected));
    });
}
