//! Archives as they should not be: each is refused, and leaves the store as it was.

use super::*;

#[test]
fn paths_links_and_devices_are_refused() {
    let (origin, target) = (Origin::new(), Target::new());
    let outside = target.folder.path().join("outside");
    let absolute = outside.to_str().unwrap().to_owned();
    for (name, kind, link, expected) in [
        (&*absolute, EntryType::Regular, "", "is an absolute path"),
        ("/", EntryType::Directory, "", "is an absolute path"),
        (
            "../outside",
            EntryType::Regular,
            "",
            "leads out of the image",
        ),
        (
            "checkpoint/../../../outside",
            EntryType::Regular,
            "",
            "leads out of the image",
        ),
        (
            "checkpoint/..",
            EntryType::Directory,
            "",
            "leads out of the image",
        ),
        (
            "./checkpoint/pages-0.img",
            EntryType::Regular,
            "",
            "belongs to no image",
        ),
        (
            "checkpoint/new.img",
            EntryType::Regular,
            "",
            "belongs to no image",
        ),
        (
            "checkpoint/new/",
            EntryType::Directory,
            "",
            "belongs to no image",
        ),
        ("seal.json", EntryType::Regular, "", "belongs to no image"),
        (
            "checkpoint/new.img",
            EntryType::Symlink,
            "/etc/passwd",
            "is a link",
        ),
        (
            "map/pages-0.img",
            EntryType::Symlink,
            "../criu/pages-0.img",
            "is a link",
        ),
        ("checkpoint", EntryType::Symlink, "..", "is a link"),
        (
            "checkpoint/new.img",
            EntryType::Link,
            "/etc/passwd",
            "is a link",
        ),
        (
            "checkpoint/new.img",
            EntryType::Link,
            "checkpoint/pages-0.img",
            "is a link",
        ),
        (
            "blobs/sha256/00",
            EntryType::Link,
            "../../etc/passwd",
            "is a link",
        ),
        (
            "blobs/sha256/00",
            EntryType::Link,
            "checkpoint/pages-0.img",
            "has another content",
        ),
        (
            "checkpoint/new.img",
            EntryType::Char,
            "",
            "is neither a file nor a folder",
        ),
        (
            "checkpoint/new.img",
            EntryType::Block,
            "",
            "is neither a file nor a folder",
        ),
        (
            "checkpoint/new.img",
            EntryType::Fifo,
            "",
            "is neither a file nor a folder",
        ),
        (
            "checkpoint/new.img",
            EntryType::GNUSparse,
            "",
            "is neither a file nor a folder",
        ),
        (
            "././@LongLink",
            EntryType::GNULongName,
            "",
            "is neither a file nor a folder",
        ),
        (
            "pax",
            EntryType::XHeader,
            "",
            "is neither a file nor a folder",
        ),
    ] {
        // Behind the files, before them, and as what comes first.
        for from_end in [1, 4, usize::MAX] {
            let archive = origin.changed(|entries| {
                let mut header = header(name, kind, 0);
                header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
                let at = entries.len().saturating_sub(from_end);
                entries.insert(at, (header, vec![]));
            });
            let expected = match (from_end, expected) {
                (usize::MAX, "is an absolute path" | "leads out of the image") => expected,
                (usize::MAX, _) => "manifest.json comes first",
                _ => expected,
            };
            target.refuse(&archive, expected);
        }
    }
    assert!(!outside.exists());
}

#[test]
fn what_is_there_twice_or_missing_is_refused() {
    let (origin, target) = (Origin::new(), Target::new());
    for number in 0..origin.entries().len() {
        let twice = origin.changed(|entries| {
            let entry = entries[number].clone();
            entries.push(entry);
        });
        target.refuse(&twice, "is there twice");
        let (header, _) = &origin.entries()[number];
        let name = String::from_utf8(header.path_bytes().to_vec()).unwrap();
        let is_needed = header.entry_type() != EntryType::Directory
            && !matches!(&*name, "config.dump" | "spec.dump");
        if is_needed {
            let without = origin.changed(|entries| drop(entries.remove(number)));
            let expected = match &*name {
                "manifest.json" => "manifest.json comes first",
                "oci-layout" | "index.json" => "is not valid",
                // A blob without its file is a link to nowhere.
                _ if header.entry_type() == EntryType::Regular && !name.starts_with("blobs/") => "",
                _ => "is",
            };
            target.refuse(&without, expected);
        }
    }
    target.refuse(&pack(&[]), "manifest.json is missing");
}

#[test]
fn sizes_that_lie_and_bombs_are_refused() {
    let (origin, target) = (Origin::new(), Target::new());
    let resized = |name: &str, bytes: u64, content: Option<Vec<u8>>| {
        origin.changed(|entries| {
            let at = place(entries, name);
            entries[at].0.set_size(bytes);
            entries[at].1 = content.unwrap_or_else(|| entries[at].1.clone());
        })
    };
    let core = "checkpoint/pages-0.img";
    let is_long = "is 1099511627776 bytes long instead of 4";
    target.refuse(&resized(core, 1 << 40, None), is_long);
    target.refuse(
        &resized(core, 3, Some(b"cor".to_vec())),
        "is 3 bytes long instead of 4",
    );
    let zeros = vec![0; 64 << 20];
    let bomb = resized(core, zeros.len() as u64, Some(zeros.clone()));
    target.refuse(&bomb, "is 67108864 bytes long instead of 4");
    for document in ["config.dump", "spec.dump", "oci-layout", "index.json"] {
        let bomb = resized(document, zeros.len() as u64, Some(zeros.clone()));
        target.refuse(&bomb, "is 67108864 bytes long; at most");
    }
    target.refuse(
        &resized("manifest.json", 1 << 40, None),
        "bytes long; at most",
    );
    target.refuse(
        &resized("checkpoint/", 512, Some(vec![0; 512])),
        "is 512 bytes long instead",
    );
    // Behind the end of the tar stream, and behind the end of the compressed one.
    let entries = origin.entries();
    let with_tail = |tail: &[u8]| {
        let mut tar = tar_of(&entries);
        tar.extend(tail);
        zstd::encode_all(&tar[..], 1).unwrap()
    };
    assert!(Target::new().import(&with_tail(&[0; 9216]), false).is_ok());
    target.refuse(&with_tail(&zeros), "is followed by something else");
    target.refuse(&with_tail(b"more"), "is followed by something else");
    let mut tail = origin.archive.clone();
    tail.extend(b"garbage");
    target.refuse(&tail, "is no archive of an image, or is damaged");
    // A manifest that tells of more than is allowed: nothing of it is unpacked.
    let mut manifest = origin.image.manifest.clone();
    manifest.files[1].bytes = u64::MAX;
    target.refuse(&with_manifest(&origin, &manifest), "; 1048576 are allowed");
}

/// The archive with another manifest; the rest is made to fit it as far as it can.
fn with_manifest(origin: &Origin, manifest: &crate::store::Manifest) -> Vec<u8> {
    let bytes = serde_json::to_vec(manifest).unwrap();
    let blob = oci::Blob::of(&bytes);
    let mut layers = Vec::new();
    origin.changed(|entries| {
        let at = place(entries, MANIFEST);
        entries[at].0.set_size(bytes.len() as u64);
        entries[at].1 = bytes.clone();
        let link = entries
            .iter()
            .position(|(header, _)| header.entry_type() == EntryType::Link)
            .unwrap();
        entries[link].0 = header(&format!("{BLOBS}{}", blob.sha256), EntryType::Link, 0);
        entries[link].0.set_link_name(MANIFEST).unwrap();
        for (header, content) in &*entries {
            let name = String::from_utf8(header.path_bytes().to_vec()).unwrap();
            let is_file = name.starts_with("checkpoint/") || name.starts_with("map/");
            if header.entry_type() == EntryType::Regular && (is_file || name == "stats-dump") {
                layers.push((name, oci::Blob::of(content)));
            }
        }
        let documents = entries.len() - 3;
        entries.truncate(documents);
        let document = oci::manifest(&origin.image, &blob, &layers).to_string();
        let blob = oci::Blob::of(document.as_bytes());
        for (name, content) in [
            (format!("{BLOBS}{}", blob.sha256), document),
            (OCI_LAYOUT.to_owned(), oci::layout().to_string()),
            (
                INDEX.to_owned(),
                oci::index(&origin.image, &blob).to_string(),
            ),
        ] {
            let header = header(&name, EntryType::Regular, content.len() as u64);
            entries.push((header, content.into_bytes()));
        }
    })
}

#[test]
fn manifests_that_do_not_fit_are_refused() {
    let (origin, target) = (Origin::new(), Target::new());
    let good = with_manifest(&origin, &origin.image.manifest);
    assert!(
        Target::new().import(&good, false).is_ok(),
        "the test's own archives are good"
    );
    let refuse = |change: &dyn Fn(&mut crate::store::Manifest), expected: &str| {
        let mut manifest = origin.image.manifest.clone();
        change(&mut manifest);
        target.refuse(&with_manifest(&origin, &manifest), expected);
    };
    refuse(&|manifest| manifest.schema = 9, "has schema 9");
    let first =
        |name: &'static str| move |m: &mut crate::store::Manifest| m.files[4].name = name.into();
    let in_no_folder = "it is in no folder of an image";
    for name in [
        "criu/../../x",
        "/etc/passwd",
        "criu/",
        "criu/a/b",
        "seal/x",
        "criu/\n",
        "..",
    ] {
        refuse(&first(name), in_no_folder);
    }
    refuse(&first("criu/pages-1.img"), "it is listed twice");
    refuse(
        &first("map/other.img"),
        "map/pages-301.img belongs to no image",
    );
    let link = |target: &'static str| {
        move |manifest: &mut crate::store::Manifest| {
            let mut links = manifest.files.iter_mut().filter(|file| file.link.is_some());
            links.next().unwrap().link = Some(target.into());
        }
    };
    let leads_out = "it is a link to what is no file of the image";
    for target in [
        "/etc/passwd",
        "../../x",
        "pages-0.img",
        "../criu/../criu/pages-0.img",
        "",
    ] {
        refuse(&link(target), leads_out);
    }
    // Of the same size, another content.
    refuse(
        &|manifest| manifest.files[0].blake3 = "0".repeat(64),
        "criu/pages-0.img has another content than was stored",
    );
    refuse(
        &|manifest| drop(manifest.files.remove(4)),
        "belongs to no image",
    );
    refuse(
        &|manifest| {
            manifest.mapped = Some(crate::edit::Mapped {
                files: vec!["../../../../etc/passwd".into()],
                ..Default::default()
            });
        },
        "it is mapped, and no file of the image",
    );
    refuse(
        &|manifest| {
            let mut set = crate::working_set::WorkingSet::default();
            set.parts
                .insert("../../../../dev/zero".into(), vec![(0, 1)]);
            manifest.working_set = Some(set);
        },
        "it is mapped, and no file of the image",
    );
}

#[test]
fn wrong_digests_are_refused() {
    let (origin, target) = (Origin::new(), Target::new());
    let replaced = |name: &str, from: &str, to: &str| {
        origin.changed(|entries| {
            let at = place(entries, name);
            let text = String::from_utf8(entries[at].1.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            entries[at].1 = text.replacen(from, to, 1).into_bytes();
            let bytes = entries[at].1.len() as u64;
            entries[at].0.set_size(bytes);
        })
    };
    let entries = origin.entries();
    let manifest = place(&entries, OCI_LAYOUT) - 1;
    let name = String::from_utf8(entries[manifest].0.path_bytes().to_vec()).unwrap();
    let digest = name.strip_prefix(BLOBS).unwrap();
    let index = "index.json is not valid: it does not tell of the OCI manifest";
    target.refuse(&replaced(INDEX, digest, &"0".repeat(64)), index);
    target.refuse(&replaced(INDEX, "\"size\":", "\"size\":1"), index);
    target.refuse(
        &replaced(OCI_LAYOUT, "1.0.0", "2.0.0"),
        "it has version \"2.0.0\"",
    );
    target.refuse(
        &replaced(&name, "warmimg", "Warmimg"),
        "has another content than its digest",
    );
    target.refuse(
        &replaced(CONFIG_DUMP, "\"web\"", "\"../x\""),
        "is not a name for an image",
    );
    // A file that is another than the manifest says: its blob is, too.
    let other = origin.changed(|entries| {
        let at = place(entries, "checkpoint/pages-0.img");
        entries[at].1 = b"Core".to_vec();
    });
    target.refuse(&other, "has another content than its digest");
}

#[test]
fn no_byte_can_be_changed_or_left_out() {
    let (origin, target) = (Origin::new(), Target::new());
    let before = target.listing();
    let mut meaningless = 0;
    for at in 0..origin.archive.len() {
        let mut changed = origin.archive.clone();
        changed[at] ^= 1 << (at % 8);
        match target.import(&changed, false) {
            Err(error) => assert!(!matches!(error, ArchiveError::Store(_)), "{at}: {error:?}"),
            // Some bits of a compressed stream have no meaning.
            Ok(imported) => {
                meaningless += 1;
                target.assert_whole_and_remove(&imported, &origin);
            }
        }
    }
    assert!(meaningless * 50 < origin.archive.len(), "{meaningless}");
    for len in (0..origin.archive.len()).step_by(7) {
        let error = target.import(&origin.archive[..len], false).unwrap_err();
        let is_cut = matches!(
            error,
            ArchiveError::CutShort { .. } | ArchiveError::Refused { .. }
        );
        assert!(is_cut, "{len} bytes: {error:?}");
    }
    // The same within a stream that is whole.
    let tar = tar_of(&origin.entries());
    for len in (0..tar.len() - 1024).step_by(512) {
        let archive = zstd::encode_all(&tar[..len], 1).unwrap();
        assert!(
            target.import(&archive, false).is_err(),
            "{len} bytes of the tar stream"
        );
    }
    assert_eq!(target.listing(), before);
}

#[test]
fn no_byte_of_the_tar_stream_can_be_changed_unnoticed() {
    let (origin, target) = (Origin::new(), Target::new());
    let before = target.listing();
    let tar = tar_of(&origin.entries());
    let mut meaningless = 0;
    for at in (0..tar.len()).step_by(61) {
        let mut changed = tar.clone();
        changed[at] ^= 1 << (at % 8);
        let archive = zstd::encode_all(&changed[..], 1).unwrap();
        match target.import(&archive, false) {
            Err(error) => assert!(!matches!(error, ArchiveError::Store(_)), "{at}: {error:?}"),
            // What fills up blocks, and what is not the image's: of `config.dump`, the name alone.
            Ok(imported) => {
                meaningless += 1;
                target.assert_whole_and_remove(&imported, &origin);
            }
        }
    }
    assert!(meaningless < tar.len() / 61 / 2, "{meaningless}");
    assert_eq!(target.listing(), before);
}
