//! Archives as they should be, and what the tests of others share.

mod refusals;

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
        fs::write(staging.criu().join("pages-0.img"), "core").unwrap();
        fs::write(staging.criu().join("stats-dump"), "counted").unwrap();
        fs::create_dir(staging.map()).unwrap();
        fs::write(staging.map().join("pages-302.img"), "mm").unwrap();
        // The same content twice is one blob.
        fs::write(staging.map().join("pages-301.img"), "core").unwrap();
        symlink("../criu/pages-0.img", staging.map().join("pages-0.img")).unwrap();
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

    /// Asserts that an image is that of an archive that was changed, and removes it.
    fn assert_whole_and_remove(&self, imported: &Imported, origin: &Origin) {
        assert_eq!(imported.image.digest, origin.image.digest);
        let verification = self.store.verify(&imported.image.digest).unwrap();
        assert!(verification.is_whole() && verification.unknown.is_empty());
        self.store.remove(&imported.image.digest).unwrap();
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
        "checkpoint/pages-0.img",
        "checkpoint/pages-1.img",
        "stats-dump",
        "map/pages-301.img",
        "map/pages-302.img",
    ];
    assert_eq!(titles, expected);
    assert_eq!(json("config.dump")["name"], "web");
    assert_eq!(json("config.dump")["createdTime"], "2023-11-14T22:13:20Z");
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
    let begun = target.import(&cut[..10], true);
    assert!(matches!(
        begun,
        Err(ArchiveError::CutShort { is_kept: false, .. })
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
    let path = origin.image.criu_folder().join("pages-0.img");
    let times = path.metadata().unwrap().modified().unwrap();
    fs::write(&path, "Core").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    assert!(export(&origin.image, io::sink(), &mut |_| ()).is_err());
    // As it is for the seal.
    file.set_modified(times).unwrap();
    let error = export(&origin.image, io::sink(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, ArchiveError::Damaged { .. }), "{error:?}");
}
