use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    time::{Duration, Instant},
};

use super::*;
use crate::{criu, host, tree::NsPid, watch::CapturePoint};

/// A manifest without files.
pub(crate) fn manifest(created_ms: u64) -> Manifest {
    Manifest {
        schema: SCHEMA,
        created_ms,
        command: CommandInfo {
            words: vec!["server".into()],
            working_directory: "/".into(),
            user: None,
            environment: vec![],
        },
        capture: Capture {
            point: CapturePoint::Ready,
            start_up_us: 1,
            freeze_us: 2,
            dump_us: 3,
            time_line: vec![],
            dropped_events: 0,
        },
        listeners: vec![],
        shared_ports: Default::default(),
        connections: vec![],
        recipe: None,
        after_restore: vec![],
        locks: Default::default(),
        root: NsPid(300),
        processes: vec![],
        memory_bytes: 4096,
        mapped: None,
        working_set: None,
        stdout: Some("pipe:[1]".into()),
        stderr: Some("pipe:[2]".into()),
        clocks: host::Clocks::now(),
        host: host::Host::read().unwrap(),
        criu: CriuInfo {
            version: criu::Version(4, 2, 1),
            user: criu::User::Root,
            connections: criu::TcpConnections::None,
            foreign_session: false,
        },
        surroundings: None,
        dependencies: vec![],
        private_keys: vec![],
        files: vec![],
    }
}

pub(crate) fn add(store: &Store, name: &str, created_ms: u64) -> Image {
    let staging = store.stage().unwrap();
    fs::write(staging.criu().join("pages-1.img"), created_ms.to_string()).unwrap();
    store.commit(staging, manifest(created_ms), name).unwrap()
}

#[test]
fn images_are_found_by_name_digest_and_age() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert!(matches!(store.find(None), Err(StoreError::Empty(_))));
    let old = add(&store, "web", 1);
    let new = add(&store, "web", 2);
    assert_eq!(store.find(None).unwrap().digest, new.digest);
    assert_eq!(store.find(Some("web")).unwrap().digest, new.digest);
    let found = store.find(Some(&old.digest.as_str()[..20])).unwrap();
    assert_eq!((found.digest, found.names), (old.digest, vec![]));
    assert!(matches!(
        store.find(Some("none")),
        Err(StoreError::Unknown { .. })
    ));
    assert!(matches!(
        store.find(Some("")),
        Err(StoreError::Unknown { .. })
    ));
    assert!(matches!(
        store.find(Some("../x")),
        Err(StoreError::Unknown { .. })
    ));
}

#[test]
fn digests_cover_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add(&store, "web", 1);
    assert_eq!(image.manifest.files.len(), 1);
    assert_eq!(
        image.manifest.files[0].blake3,
        blake3::hash(b"1").to_hex().to_string()
    );
    let bytes = fs::read(image.folder.join("manifest.json")).unwrap();
    assert_eq!(
        image.digest.as_str(),
        blake3::hash(&bytes).to_hex().as_str()
    );
    let mode = fs::metadata(image.criu_folder().join("pages-1.img"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// An image of a file, and of another folder with a file and a link.
fn add_linked(store: &Store) -> Image {
    let staging = store.stage().unwrap();
    fs::write(staging.criu().join("pages-300.img"), "core").unwrap();
    let map = staging.image().join("map");
    fs::create_dir(&map).unwrap();
    fs::write(map.join("pages-301.img"), "mm").unwrap();
    symlink("../criu/pages-300.img", map.join("pages-300.img")).unwrap();
    store.commit(staging, manifest(1), "linked").unwrap()
}

fn damage(image: &Image) -> (String, Damage) {
    match image.check() {
        Err(StoreError::Damaged { path, damage, .. }) => {
            let path = path.strip_prefix(&image.folder).unwrap();
            (path.display().to_string(), damage)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_folders_of_an_image_are_sealed_with_their_links() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add_linked(&store);
    let files = image.manifest.files.iter();
    let files: Vec<_> = files
        .map(|file| (&*file.name, file.link.as_deref()))
        .collect();
    let expected = [
        ("criu/pages-300.img", None),
        ("map/pages-300.img", Some("../criu/pages-300.img")),
        ("map/pages-301.img", None),
    ];
    assert_eq!(files, expected);
    assert_eq!(store.find(Some("linked")).unwrap().manifest, image.manifest);
    image.check().unwrap();
    let verified = store.verify(&image.digest).unwrap();
    assert!(verified.is_whole() && !verified.resealed && verified.unknown.is_empty());
    assert_eq!((verified.files, verified.bytes), (3, 6));

    // Another link, though it leads to the same; then a file.
    let link = image.folder.join("map/pages-300.img");
    let expected = Damage::Link {
        expected: "../criu/pages-300.img".to_owned(),
    };
    fs::remove_file(&link).unwrap();
    symlink("../map/../criu/pages-300.img", &link).unwrap();
    let found = ("map/pages-300.img".to_owned(), expected);
    assert_eq!(damage(&image), found);
    fs::remove_file(&link).unwrap();
    fs::write(&link, "core").unwrap();
    assert_eq!(damage(&image), found);
    assert_eq!(store.verify(&image.digest).unwrap().faults, [found]);
    fs::remove_file(&link).unwrap();
    assert_eq!(
        damage(&image),
        ("map/pages-300.img".to_owned(), Damage::Missing)
    );
}

#[test]
fn what_cannot_be_part_of_an_image_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let refused = |make: &dyn Fn(&Path)| {
        let staging = store.stage().unwrap();
        fs::write(staging.criu().join("pages-300.img"), "core").unwrap();
        make(&staging.image());
        match store.commit(staging, manifest(1), "odd") {
            Err(StoreError::Unfit { path, reason }) => {
                (path.file_name().unwrap().display().to_string(), reason)
            }
            other => panic!("{other:?}"),
        }
    };
    fs::write(folder.path().join("outside"), "").unwrap();
    let outside = folder.path().join("outside");
    for target in [
        outside.to_str().unwrap(),
        "/etc/passwd",
        "../../../../outside",
        "../criu",
        "../criu/missing.img",
        "link",
    ] {
        let (name, reason) = refused(&|image| symlink(target, image.join("criu/link")).unwrap());
        assert_eq!(name, "link", "{target}");
        assert!(
            reason.contains("no file of the image"),
            "{target}: {reason}"
        );
    }
    let (name, reason) = refused(&|image| fs::write(image.join("stray"), "").unwrap());
    assert_eq!(
        (&*name, reason),
        ("stray", "it is in no folder of the image")
    );
    let fifo = |image: &Path| {
        let mode = nix::sys::stat::Mode::S_IRUSR;
        nix::unistd::mkfifo(&image.join("criu/fifo"), mode).unwrap();
    };
    let (name, reason) = refused(&fifo);
    assert_eq!(
        (&*name, reason),
        ("fifo", "it is neither a file nor a link")
    );
    assert!(matches!(store.find(None), Err(StoreError::Empty(_))));
}

#[test]
fn files_are_known_by_size_time_and_inode() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add(&store, "web", 1);
    let (name, file) = ("criu/pages-1.img", image.folder.join("criu/pages-1.img"));
    let seal = fs::read(image.folder.join(SEAL)).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let set_time = |time| {
        let file = fs::File::options().write(true).open(&file).unwrap();
        file.set_modified(time).unwrap();
    };
    let is = |damage| (name.to_owned(), damage);

    set_time(modified + Duration::from_nanos(1));
    assert_eq!(damage(&image), is(Damage::Changed));
    set_time(modified);
    image.check().unwrap();
    let copy = folder.path().join("copy");
    fs::copy(&file, &copy).unwrap();
    fs::rename(&copy, &file).unwrap();
    set_time(modified);
    assert_eq!(damage(&image), is(Damage::Changed));
    // It is the same: taken for the image's own from then on.
    assert!(store.verify(&image.digest).unwrap().resealed);
    image.check().unwrap();
    assert!(!store.verify(&image.digest).unwrap().resealed);
    assert_eq!(
        fs::read_dir(folder.path().join("staging")).unwrap().count(),
        0
    );

    // It is not: nothing is taken for the image's own.
    fs::write(image.folder.join(SEAL), &seal).unwrap();
    fs::write(&file, "2").unwrap();
    let verified = store.verify(&image.digest).unwrap();
    assert_eq!(
        (verified.faults, verified.resealed),
        (vec![is(Damage::Content)], false)
    );
    assert_eq!(fs::read(image.folder.join(SEAL)).unwrap(), seal);
    fs::write(&file, "22").unwrap();
    let size = Damage::Size {
        found: 2,
        expected: 1,
    };
    assert_eq!(damage(&image), is(size.clone()));
    // Without a seal as well.
    fs::remove_file(image.folder.join(SEAL)).unwrap();
    assert_eq!(damage(&image), is(size));
    fs::write(&file, "2").unwrap();
    image.check().unwrap();
}

#[test]
fn to_check_60_files_takes_microseconds() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let staging = store.stage().unwrap();
    let map = staging.image().join("map");
    fs::create_dir(&map).unwrap();
    for number in 0..30 {
        let name = format!("core-{number}.img");
        fs::write(staging.criu().join(&name), &name).unwrap();
        symlink(format!("../criu/{name}"), map.join(&name)).unwrap();
    }
    let image = store.commit(staging, manifest(1), "web").unwrap();
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let begun = Instant::now();
            image.check().unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("half of the checks of 60 files took {:?}", times[500]);
    assert!(times[500] < Duration::from_millis(5));
}

#[test]
fn images_of_earlier_versions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add(&store, "web", 1);
    // Names alone, and no seal.
    let path = image.folder.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"criu/pages-1.img\"", "\"pages-1.img\"");
    fs::write(&path, &text).unwrap();
    fs::remove_file(image.folder.join(SEAL)).unwrap();
    let digest = Digest(blake3::hash(text.as_bytes()).to_hex().to_string());
    fs::rename(&image.folder, folder.path().join("images").join(&digest.0)).unwrap();

    let image = store.find(Some(digest.as_str())).unwrap();
    assert_eq!(image.manifest.files[0].name, "pages-1.img");
    image.check().unwrap();
    let verified = store.verify(&digest).unwrap();
    assert!(verified.is_whole() && verified.resealed && verified.unknown.is_empty());
    image.check().unwrap();
    fs::remove_file(image.criu_folder().join("pages-1.img")).unwrap();
    assert_eq!(
        damage(&image),
        ("criu/pages-1.img".to_owned(), Damage::Missing)
    );
}

#[test]
fn a_manifest_that_was_changed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add_linked(&store);
    let path = image.folder.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    // Here to a file of the image, to none, and out of it.
    for target in ["../criu/pages-300.img", "../criu/none.img", "../../outside"] {
        let link = image.folder.join("map/pages-300.img");
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        let changed = text.replace("\"../criu/pages-300.img\"", &format!("\"{target}\""));
        let changed = changed.replace("\"created_ms\": 1", "\"created_ms\": 2");
        fs::write(&path, changed).unwrap();
        let of_link = |damage| ("map/pages-300.img".to_owned(), damage);
        let outside = Damage::Outside {
            target: target.to_owned(),
        };
        let mut expected = vec![(MANIFEST.to_owned(), Damage::Content)];
        if target != "../criu/pages-300.img" {
            expected.push(of_link(outside.clone()));
        }
        assert_eq!(store.verify(&image.digest).unwrap().faults, expected);
        assert_eq!(damage(&image), (MANIFEST.to_owned(), Damage::Changed));
        if target == "../../outside" {
            fs::remove_file(image.folder.join(SEAL)).unwrap();
            let image = store.find(Some("linked")).unwrap();
            assert_eq!(damage(&image), of_link(outside));
        }
    }
    // Of a later version, by its digest.
    let other = text.replacen("\"schema\": 2", "\"schema\": 3", 1);
    fs::write(&path, &other).unwrap();
    let digest = Digest(blake3::hash(other.as_bytes()).to_hex().to_string());
    fs::rename(&image.folder, folder.path().join("images").join(&digest.0)).unwrap();
    let faults = store.verify(&digest).unwrap().faults;
    assert!(
        matches!(&faults[..], [(_, Damage::Invalid { .. })]),
        "{faults:?}"
    );
    // A name without an image.
    let faults = store.verify(&image.digest).unwrap().faults;
    assert_eq!(faults, [(MANIFEST.to_owned(), Damage::Missing)]);
}

#[test]
fn removing_an_image_removes_its_names_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (kept, removed) = (add(&store, "kept", 1), add(&store, "removed", 2));
    assert_eq!(store.remove(&removed.digest).unwrap(), ["removed"]);
    let left: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|image| image.digest().clone())
        .collect();
    assert_eq!(left, [kept.digest]);
    assert!(matches!(
        store.find(Some("removed")),
        Err(StoreError::Unknown { .. })
    ));
    assert_eq!(
        fs::read_dir(folder.path().join("staging")).unwrap().count(),
        0
    );
}

#[test]
fn what_was_left_half_made_is_swept_and_what_is_in_use_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let in_use = store.stage().unwrap();
    let left = folder.path().join("staging/999999-0");
    fs::create_dir_all(left.join("image/criu")).unwrap();
    Store::open(folder.path()).unwrap();
    assert!(!left.exists());
    assert!(in_use.criu().exists());
    drop(in_use);
    assert_eq!(
        fs::read_dir(folder.path().join("staging")).unwrap().count(),
        0
    );
}

#[test]
fn manifests_of_another_schema_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let image = add(&store, "web", 1);
    let path = image.folder.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let later = text.replacen("\"schema\": 2", "\"schema\": 3", 1);
    fs::write(&path, later).unwrap();
    assert!(matches!(
        store.find(Some("web")),
        Err(StoreError::OtherSchema { found: 3, .. })
    ));
    let earlier = text.replacen("\"schema\": 2", "\"schema\": 1", 1);
    fs::write(&path, earlier).unwrap();
    store.find(Some("web")).unwrap();
    fs::write(&path, "{").unwrap();
    // It hides no other, and can be removed.
    let other = add(&store, "other", 2);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.find(None).unwrap().digest, other.digest);
    assert!(matches!(
        store.find(Some("web")),
        Err(StoreError::BadManifest { .. })
    ));
    store.remove(&store.locate("web").unwrap()).unwrap();
    assert!(matches!(
        store.find(Some("web")),
        Err(StoreError::Unknown { .. })
    ));
}

#[test]
fn names_are_checked() {
    for good in ["web", "node-20.1", "A_b"] {
        check_name(good).unwrap();
    }
    for bad in ["", ".web", "a/b", "-x", "ü", &"x".repeat(65)] {
        assert!(
            matches!(check_name(bad), Err(StoreError::BadName { .. })),
            "{bad}"
        );
    }
}
