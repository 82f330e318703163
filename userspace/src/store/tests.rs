use std::fs;

use super::*;
use crate::{criu, host, tree::NsPid, watch::CapturePoint};

fn manifest(created_ms: u64) -> Manifest {
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
        after_restore: vec![],
        locks: Default::default(),
        root: NsPid(300),
        processes: vec![],
        memory_bytes: 4096,
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
        dependencies: vec![],
        files: vec![],
    }
}

fn add(store: &Store, name: &str, created_ms: u64) -> Image {
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
        .map(|image| image.digest)
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
    fs::write(&path, text.replacen("\"schema\": 1", "\"schema\": 2", 1)).unwrap();
    assert!(matches!(
        store.find(Some("web")),
        Err(StoreError::OtherSchema { found: 2, .. })
    ));
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
