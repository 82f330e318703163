//! Compares files outside of an image with what they were.

use std::{fs::File, path::Path};

use rustix::fs::FileType;

use super::{Code, Finding, look::Looks};
use crate::{
    build_id::build_id,
    store::{Dependency, Identity, Image, Known, Role, digest},
};

/// How closely files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The content of those that are others than they were.
    Identity,
    /// The content of all.
    Content,
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Same,
    Missing(String),
    /// What it is, and what it was.
    Changed {
        found: String,
        expected: String,
    },
}

/// Compares files, and learns of those that are others with the same content.
pub struct Comparison<'a> {
    depth: Depth,
    image: &'a Image,
    looks: Looks,
    /// Read when the first file is another one.
    known: Option<Known>,
    has_learnt: bool,
}

impl<'a> Comparison<'a> {
    pub fn new(image: &'a Image, depth: Depth) -> Self {
        Self {
            depth,
            image,
            looks: Looks::default(),
            known: None,
            has_learnt: false,
        }
    }

    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// What is known of files, if something was added to it.
    pub fn learnt(&self) -> Option<&Known> {
        self.known.as_ref().filter(|_| self.has_learnt)
    }

    /// Compares a file with what it was.
    pub fn compare(&mut self, file: &Dependency) -> Option<Finding> {
        let (code, expected, found) = match self.state(file) {
            // What it would be called takes as long as to look at it.
            State::Same => return None,
            State::Missing(found) => (codes(file).0, "a file".to_owned(), found),
            State::Changed { found, expected } => (codes(file).1, expected, found),
        };
        let about = file.path.display().to_string();
        Some(Finding::new(code, about, expected, found))
    }

    fn state(&mut self, file: &Dependency) -> State {
        let found = match self.looks.look_at(&file.path) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return State::Missing("nothing".to_owned()),
            Err(error) => return State::Missing(error.to_string()),
        };
        let is_right = match file.role {
            Role::Referred => true,
            Role::Folder => FileType::from_raw_mode(found.mode).is_dir(),
            _ => FileType::from_raw_mode(found.mode).is_file(),
        };
        match (file.role, file.mode) {
            _ if !is_right => State::Missing("something else".to_owned()),
            (_, Some(expected)) if expected != found.mode => {
                let text = |mode: u32| format!("mode {:o}", mode & 0o7777);
                State::Changed {
                    found: text(found.mode),
                    expected: text(expected),
                }
            }
            (Role::Referred | Role::Written | Role::Folder, _) => State::Same,
            (Role::Mapped | Role::Open | Role::Read, _) => {
                self.compare_content(file, found.identity)
            }
        }
    }

    fn compare_content(&mut self, file: &Dependency, found: Identity) -> State {
        let is_as_it_was = found == file.identity();
        if self.depth == Depth::Identity && (is_as_it_was || self.is_known(&file.path, found)) {
            return State::Same;
        }
        if found.bytes != file.bytes {
            let size = |bytes: u64| format!("{bytes} bytes");
            return State::Changed {
                found: size(found.bytes),
                expected: size(file.bytes),
            };
        }
        let Some(expected) = &file.blake3 else {
            return match is_as_it_was {
                true => State::Same,
                false => State::Changed {
                    found: "a later one".to_owned(),
                    expected: "that of the capture".to_owned(),
                },
            };
        };
        let content = File::open(&file.path).and_then(|file| digest(&file));
        match content {
            Ok(content) if content == *expected => {
                if !is_as_it_was && !self.is_known(&file.path, found) {
                    self.learn(&file.path, found);
                }
                State::Same
            }
            Ok(content) => changed_content(file, expected, &content),
            Err(error) => State::Missing(error.to_string()),
        }
    }

    fn known(&mut self) -> &mut Known {
        self.known.get_or_insert_with(|| self.image.known())
    }

    fn is_known(&mut self, path: &Path, found: Identity) -> bool {
        self.known().get(path) == Some(&found)
    }

    fn learn(&mut self, path: &Path, found: Identity) {
        self.known().insert(path.to_owned(), found);
        self.has_learnt = true;
    }
}

/// Tells builds apart if there are two, else contents.
fn changed_content(file: &Dependency, expected: &str, found: &str) -> State {
    let build = file.build_id.as_ref().and_then(|expected| {
        let found = build_id(&file.path)?;
        let text = |id: &str| format!("build {}", short(id));
        (found != *expected).then(|| (text(&found), text(expected)))
    });
    let content = |digest: &str| format!("content {}", short(digest));
    let (found, expected) = build.unwrap_or_else(|| (content(found), content(expected)));
    State::Changed { found, expected }
}

fn short(digits: &str) -> &str {
    digits.get(..12).unwrap_or(digits)
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

/// What it is called if a file is missing, and if it has changed.
fn codes(file: &Dependency) -> (Code, Code) {
    const NAME_RESOLUTION: [&str; 5] = [
        "/etc/gai.conf",
        "/etc/host.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/resolv.conf",
    ];
    const TIME_ZONE: [&str; 3] = ["/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo"];
    let path = &file.path;
    match file.role {
        Role::Read if TIME_ZONE.iter().any(|zone| path.starts_with(zone)) => {
            (Code::TimeZone, Code::TimeZone)
        }
        Role::Read if NAME_RESOLUTION.iter().any(|name| path == Path::new(name)) => {
            (Code::NameResolution, Code::NameResolution)
        }
        Role::Read => (Code::ReadMissing, Code::ReadChanged),
        _ => (Code::UsedMissing, Code::UsedChanged),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
        time::{Duration, Instant, SystemTime},
    };

    use super::*;
    use crate::{
        fit::{Seen, identify},
        store::{Store, tests::add},
    };

    struct Scene {
        folder: tempfile::TempDir,
        image: Image,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("store")).unwrap();
            let image = add(&store, "web", 1);
            Self { folder, image }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }

        fn record(&self, path: &Path, role: Role) -> Dependency {
            let mut found = identify(vec![Seen::now(path.into(), role)]);
            assert_eq!(found.len(), 1);
            found.remove(0)
        }

        fn check(&self, depth: Depth, file: &Dependency) -> Option<(Code, String)> {
            let finding = Comparison::new(&self.image, depth).compare(file)?;
            Some((
                finding.code,
                format!("{} instead of {}", finding.found, finding.expected),
            ))
        }
    }

    /// Sets the time of a file to another.
    fn touch(path: &Path) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
            .unwrap();
    }

    #[test]
    fn a_touched_file_is_the_same_and_read_once() {
        let scene = Scene::new();
        let store = Store::open(&scene.folder.path().join("store")).unwrap();
        let path = scene.write("lib.so", "code");
        let file = scene.record(&path, Role::Mapped);
        touch(&path);
        let mut comparison = Comparison::new(&scene.image, Depth::Identity);
        assert_eq!(comparison.compare(&file), None);
        let known = comparison.learnt().unwrap();
        assert_eq!(known.len(), 1);
        scene.image.remember(known).unwrap();
        // From now on its identity is enough: that it has changed since does not show in it.
        let touched = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "CODE").unwrap();
        let open = File::options().write(true).open(&path).unwrap();
        open.set_modified(touched).unwrap();
        let mut comparison = Comparison::new(&scene.image, Depth::Identity);
        assert_eq!(comparison.compare(&file), None);
        assert_eq!(comparison.learnt(), None);
        let (code, _) = scene.check(Depth::Content, &file).unwrap();
        assert_eq!(code, Code::UsedChanged);
        let verified = store.verify(&scene.image.digest).unwrap();
        assert_eq!(verified.unknown, [""; 0]);
    }

    #[test]
    fn another_content_is_told_by_what_it_is_for() {
        let scene = Scene::new();
        for (role, code) in [
            (Role::Mapped, Some(Code::UsedChanged)),
            (Role::Open, Some(Code::UsedChanged)),
            (Role::Read, Some(Code::ReadChanged)),
            (Role::Written, None),
        ] {
            let path = scene.write("file", "content");
            let file = scene.record(&path, role);
            assert_eq!(scene.check(Depth::Content, &file), None);
            // In a file of its own, as its size is the same and its time may be.
            let other = scene.write("other", "CONTENT");
            fs::rename(other, &path).unwrap();
            let found = scene.check(Depth::Identity, &file);
            assert_eq!(found.map(|(code, _)| code), code, "{role:?}");
            let path = scene.write("file", "longer content");
            let found = scene.check(Depth::Identity, &file);
            let text = code.map(|code| (code, "14 bytes instead of 7 bytes".to_owned()));
            assert_eq!(found, text, "{role:?}");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn what_is_missing_is_told_by_what_it_is_for() {
        let scene = Scene::new();
        for (role, code) in [
            (Role::Referred, Code::UsedMissing),
            (Role::Mapped, Code::UsedMissing),
            (Role::Open, Code::UsedMissing),
            (Role::Written, Code::UsedMissing),
            (Role::Read, Code::ReadMissing),
        ] {
            let path = scene.write("file", "content");
            let file = Dependency {
                role,
                mode: None,
                ..scene.record(&path, Role::Mapped)
            };
            fs::remove_file(&path).unwrap();
            let text = "nothing instead of a file".to_owned();
            assert_eq!(scene.check(Depth::Identity, &file), Some((code, text)));
            fs::create_dir(&path).unwrap();
            let text = "something else instead of a file".to_owned();
            let found = scene.check(Depth::Identity, &file);
            let is_any = role == Role::Referred;
            assert_eq!(found, (!is_any).then_some((code, text)));
            fs::remove_dir(&path).unwrap();
        }
        let folder = scene.folder.path().join("work");
        fs::create_dir(&folder).unwrap();
        let file = scene.record(&folder, Role::Open);
        assert_eq!(file.role, Role::Folder);
        scene.write("work/new", "");
        assert_eq!(scene.check(Depth::Identity, &file), None);
    }

    #[test]
    fn other_permissions_matter_where_criu_compares_them() {
        let scene = Scene::new();
        for (role, matters) in [
            (Role::Mapped, true),
            (Role::Open, true),
            (Role::Read, false),
        ] {
            let path = scene.write("file", "content");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let file = scene.record(&path, role);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let found = scene.check(Depth::Identity, &file);
            let text = "mode 600 instead of mode 644".to_owned();
            assert_eq!(found, matters.then_some((Code::UsedChanged, text)));
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_another_file() {
        let scene = Scene::new();
        let (old, new) = (scene.write("old", "CET"), scene.write("new", "EST"));
        let link = scene.folder.path().join("link");
        symlink(old, &link).unwrap();
        let file = scene.record(&link, Role::Read);
        assert_eq!(scene.check(Depth::Identity, &file), None);
        fs::remove_file(&link).unwrap();
        symlink(new, &link).unwrap();
        let (code, _) = scene.check(Depth::Identity, &file).unwrap();
        assert_eq!(code, Code::ReadChanged);
    }

    #[test]
    fn files_of_the_system_have_meanings_of_their_own() {
        let file = |path: &str, role| Dependency {
            path: path.into(),
            role,
            bytes: 0,
            modified_ns: 0,
            inode: 0,
            mode: None,
            blake3: None,
            build_id: None,
        };
        for (path, role, code) in [
            ("/etc/localtime", Role::Read, Code::TimeZone),
            ("/usr/share/zoneinfo/Asia/Tokyo", Role::Read, Code::TimeZone),
            ("/etc/resolv.conf", Role::Read, Code::NameResolution),
            ("/etc/passwd", Role::Read, Code::ReadChanged),
            ("/etc/hosts", Role::Mapped, Code::UsedChanged),
        ] {
            assert_eq!(codes(&file(path, role)).1, code, "{path}");
        }
    }

    #[test]
    fn another_build_is_told_by_its_id() {
        let scene = Scene::new();
        let path = scene.folder.path().join("server");
        fs::copy("/bin/sh", &path).unwrap();
        let mut file = scene.record(&path, Role::Mapped);
        let real = file.build_id.replace("00112233445566".into()).unwrap();
        file.blake3 = Some("other".into());
        let (_, text) = scene.check(Depth::Content, &file).unwrap();
        let expected = format!("build {} instead of build 001122334455", short(&real));
        assert_eq!(text, expected);
    }

    #[test]
    fn to_check_400_mapped_files_takes_less_than_a_millisecond() {
        let scene = Scene::new();
        let files: Vec<_> = (0..400)
            .map(|number| Seen::now(scene.write(&format!("{number}.so"), "code"), Role::Mapped))
            .collect();
        let files = identify(files);
        assert_eq!(files.len(), 400);
        let run = |_| {
            let begun = Instant::now();
            let mut comparison = Comparison::new(&scene.image, Depth::Identity);
            let findings = files.iter().filter_map(|file| comparison.compare(file));
            assert_eq!(findings.count(), 0);
            begun.elapsed()
        };
        let best = (0..50).map(run).min().unwrap();
        let host = |_| {
            let begun = Instant::now();
            crate::fit::Here::read(None).unwrap();
            begun.elapsed()
        };
        let of_host = (0..50).map(host).min().unwrap();
        println!("400 mapped files: {best:?}, the host: {of_host:?}");
        assert!(best < Duration::from_millis(1), "{best:?}");
    }
}
