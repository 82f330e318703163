//! Archives as they should be, and as they should not: each of the latter is refused, and leaves
//! the store as it was.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
};

use tar::{EntryType, Header};

use super::*;
use crate::store::{Digest, Image, Store, sample};

/// A folder with a store, in which there is an image called `web`, and its archive.
struct Origin {
    _folder: tempfile::TempDir,
    image: Image,
    archive: Vec<u8>,
}

const PAGES: usize = 40;

impl Origin {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let staging = store.stage().unwrap();
        let mut pages = vec![0; PAGES * 4096];
        (0..PAGES)
            .step_by(3)
            .for_each(|page| pages[page * 4096] = page as u8 + 1);
        fs::write(staging.criu().join("pages-1.img"), &pages).unwrap();
        fs::write(staging.criu().join("core-300.img"), "core").unwrap();
        fs::write(staging.criu().join("stats-dump"), "counted").unwrap();
        fs::create_dir(staging.map()).unwrap();
        fs::write(staging.map().join("mm-300.img"), "mm").unwrap();
        // The same content twice is one blob.
        fs::write(staging.map().join("empty.img"), "core").unwrap();
        symlink("../criu/core-300.img", staging.map().join("core-300.img")).unwrap();
        let image = store
            .commit(staging, sample(1_700_000_000_123), "web")
            .unwrap();
        let mut archive = Vec::new();
        export(&image, &mut archive, &mut |_| ()).unwrap();
        Self {
            _folder: folder,
            image,
            archive,
        }
    }

    /// The entries of the archive: their headers, and what is in them.
    fn entries(&self) -> Vec<(Header, Vec<u8>)> {
        let mut tar = tar::Archive::new(zstd::Decoder::new(&self.archive[..]).unwrap());
        let mut entries = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            entries.push((entry.header().clone(), bytes));
        }
        entries
    }

    /// The archive with its entries changed.
    fn changed(&self, change: impl FnOnce(&mut Vec<(Header, Vec<u8>)>)) -> Vec<u8> {
        let mut entries = self.entries();
        change(&mut entries);
        pack(&entries)
    }
}

fn tar_of(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, content) in entries {
        let mut header = header.clone();
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn pack(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    zstd::encode_all(&tar_of(entries)[..], 1).unwrap()
}

fn header(name: &str, kind: EntryType, bytes: u64) -> Header {
    let mut header = Header::new_ustar();
    // What `set_path` would not take.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(0o600);
    header
}

fn place(entries: &[(Header, Vec<u8>)], name: &str) -> usize {
    let named = |(header, _): &(Header, Vec<u8>)| header.path_bytes() == name.as_bytes();
    entries.iter().position(named).unwrap()
}

/// A store to import to.
struct Target {
    folder: tempfile::TempDir,
    store: Store,
}

impl Target {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        Self { folder, store }
    }

    fn import(&self, archive: &[u8], resume: bool) -> Result<Imported, ArchiveError> {
        self.import_as(archive, None, resume)
    }

    fn import_as(
        &self,
        archive: &[u8],
        name: Option<&str>,
        resume: bool,
    ) -> Result<Imported, ArchiveError> {
        Import {
            store: &self.store,
            path: Path::new("archive"),
            name,
            most_bytes: 1 << 20,
            resume,
            progress: &mut |total, done| assert!(done <= total),
        }
        .run(archive)
    }

    /// All that is below the folder that the store is in.
    fn listing(&self) -> Vec<String> {
        fn add(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(format!("{} {:?}", path.display(), fs::read(&path).ok()));
                if path.is_dir() && !path.is_symlink() {
                    add(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        add(self.folder.path(), &mut found);
        found.sort();
        found
    }

    /// Asserts that an archive is refused, resumable or not, and that nothing is left of it.
    fn refuse(&self, archive: &[u8], expected: &str) {
        for resume in [false, true] {
            let before = self.listing();
            let error = self.import(archive, resume).expect_err(expected);
            let text = crate::doctor::chain(&error);
            assert!(text.contains(expected), "{text:?} instead of {expected:?}");
            assert_eq!(self.listing().len(), before.len(), "{expected}");
            assert_eq!(self.listing(), before, "{expected}");
        }
    }
}

#[test]
fn an_image_is_the_same_when_it_has_been_sent() {
    let (origin, target) = (Origin::new(), Target::new());
    let imported = target.import(&origin.archive, false).unwrap();
    let Imported { image, existed, .. } = imported;
    assert_eq!((existed, &image.digest), (false, &origin.image.digest));
    assert_eq!(image.names, ["web"]);
    assert_eq!(image.manifest, origin.image.manifest);
    image.check().unwrap();
    let verification = target.store.verify(&image.digest).unwrap();
    assert!(verification.is_whole() && verification.unknown.is_empty());
    assert!(!verification.resealed);
    // Pages of zeros take no room.
    let pages = image.criu_folder().join("pages-1.img").metadata().unwrap();
    assert_eq!(pages.len(), PAGES as u64 * 4096);
    assert!(pages.blocks() * 512 < PAGES as u64 / 2 * 4096);
    assert_eq!(pages.mode() & 0o777, 0o600);
    // From there it is sent on, byte for byte.
    let mut again = Vec::new();
    export(&image, &mut again, &mut |_| ()).unwrap();
    assert!(again == origin.archive);
    // It is not stored twice, and can have another name.
    let before = target.listing().len();
    let imported = target.import(&origin.archive, false).unwrap();
    assert!(imported.existed);
    assert_eq!(target.listing().len(), before);
    let imported = target
        .import_as(&origin.archive, Some("shop"), false)
        .unwrap();
    assert_eq!(imported.image.names, ["shop", "web"]);
}

#[test]
fn an_archive_is_an_oci_layout() {
    let origin = Origin::new();
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Archive::new(zstd::Decoder::new(&origin.archive[..]).unwrap());
    tar.unpack(folder.path()).unwrap();
    let read = |path: &str| fs::read(folder.path().join(path)).unwrap();
    let json = |path: &str| serde_json::from_slice::<serde_json::Value>(&read(path)).unwrap();
    let blob = |digest: &serde_json::Value| {
        let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = format!("blobs/sha256/{digest}");
        assert_eq!(Sha256::of(&read(&path)), digest);
        path
    };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = json("index.json");
    let listed = &index["manifests"][0];
    assert_eq!(
        listed["annotations"]["org.opencontainers.image.ref.name"],
        "web"
    );
    let manifest = json(&blob(&listed["digest"]));
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["org.criu.checkpoint.engine.name"], "warmimg");
    assert_eq!(annotations["org.criu.checkpoint.criu.version"], "4.2.1");
    let config = blob(&manifest["config"]["digest"]);
    assert_eq!(Digest::of(&read(&config)), origin.image.digest);
    let layers = manifest["layers"].as_array().unwrap();
    let titles: Vec<_> = layers
        .iter()
        .map(|layer| {
            let path = blob(&layer["digest"]);
            let title = &layer["annotations"]["org.opencontainers.image.title"];
            let title = title.as_str().unwrap();
            assert!(read(&path) == read(title));
            assert_eq!(layer["size"], read(&path).len());
            title
        })
        .collect();
    let expected = [
        "checkpoint/core-300.img",
        "checkpoint/pages-1.img",
        "stats-dump",
        "map/empty.img",
        "map/mm-300.img",
    ];
    assert_eq!(titles, expected);
    assert_eq!(json("config.dump")["name"], "web");
    assert_eq!(json("config.dump")["createdTime"], "2023-11-14T22:13:20Z");
}

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
            "./checkpoint/core-300.img",
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
            "map/core-300.img",
            EntryType::Symlink,
            "../criu/core-300.img",
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
            "checkpoint/core-300.img",
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
            "checkpoint/core-300.img",
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
    let core = "checkpoint/core-300.img";
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
    refuse(&first("map/other.img"), "map/empty.img belongs to no image");
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
        "core-300.img",
        "../criu/../criu/core-300.img",
        "",
    ] {
        refuse(&link(target), leads_out);
    }
    // Of the same size, another content.
    refuse(
        &|manifest| manifest.files[0].blake3 = "0".repeat(64),
        "criu/core-300.img has another content than was stored",
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
        let at = place(entries, "checkpoint/core-300.img");
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
                assert_eq!(imported.image.digest, origin.image.digest);
                assert!(
                    target
                        .store
                        .verify(&imported.image.digest)
                        .unwrap()
                        .is_whole()
                );
                target.store.remove(&imported.image.digest).unwrap();
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
fn what_was_cut_short_goes_on() {
    let (origin, target) = (Origin::new(), Target::new());
    let before = target.listing();
    // Without compression, so that it is known what has arrived.
    let tar = tar_of(&origin.entries());
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let behind_pages = {
        let entries = origin.entries();
        let at = place(&entries, "checkpoint/pages-1.img");
        tar_of(&entries[..=at]).len() - 1024
    };
    io::Write::write_all(&mut zstd, &tar[..behind_pages + 512]).unwrap();
    io::Write::flush(&mut zstd).unwrap();
    let cut = zstd.get_ref().clone();
    assert!(matches!(
        target.import(&cut, true),
        Err(ArchiveError::CutShort { is_kept: true, .. })
    ));
    let kept = target.listing();
    assert!(kept.len() > before.len());
    // Again, with something half-written in the way.
    assert!(target.import(&cut[..cut.len() - 1], true).is_err());
    let imported = target.import(&origin.archive, true).unwrap();
    assert_eq!(imported.resumed_bytes, PAGES as u64 * 4096 + 4);
    let verification = target.store.verify(&imported.image.digest).unwrap();
    assert!(verification.is_whole());
    target.store.remove(&imported.image.digest).unwrap();
    assert_eq!(target.listing(), before);

    // What was kept and changed since is found out, and does not stay.
    assert!(target.import(&cut, true).is_err());
    let partial = target.folder.path().join("store/partial");
    let pages = partial
        .join(origin.image.digest.as_str())
        .join("image/criu/pages-1.img");
    fs::write(&pages, vec![7; PAGES * 4096]).unwrap();
    let error = target.import(&origin.archive, true).unwrap_err();
    assert!(matches!(error, ArchiveError::Unfit { .. }), "{error:?}");
    target.store.sweep_partial();
    assert_eq!(target.listing(), before);
    assert!(target.import(&origin.archive, true).is_ok());
}

#[test]
fn a_name_is_not_taken_from_another_image() {
    let (origin, target) = (Origin::new(), Target::new());
    let staging = target.store.stage().unwrap();
    fs::write(staging.criu().join("core-1.img"), "other").unwrap();
    let other = target.store.commit(staging, sample(5), "web").unwrap();
    let before = target.listing();
    let error = target.import(&origin.archive, false).unwrap_err();
    assert!(matches!(error, ArchiveError::NameTaken { .. }), "{error:?}");
    assert_eq!(target.listing(), before);
    let imported = target
        .import_as(&origin.archive, Some("web"), false)
        .unwrap();
    assert_eq!(imported.image.names, ["web"]);
    assert_eq!(target.store.named("web"), Some(imported.image.digest));
    assert_eq!(
        target.store.existing(&other.digest).unwrap().unwrap().names,
        [""; 0]
    );
    let bad = target.import_as(&origin.archive, Some("../x"), false);
    assert!(matches!(
        bad,
        Err(ArchiveError::Store(StoreError::BadName { .. }))
    ));
}

#[test]
fn a_damaged_image_is_not_exported() {
    let origin = Origin::new();
    let path = origin.image.criu_folder().join("core-300.img");
    let times = path.metadata().unwrap().modified().unwrap();
    fs::write(&path, "Core").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    assert!(export(&origin.image, io::sink(), &mut |_| ()).is_err());
    // As it is for the seal.
    file.set_modified(times).unwrap();
    let error = export(&origin.image, io::sink(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error:?}");
}
