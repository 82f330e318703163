//! What a store is after a power loss: every image in it is whole, and what was reported as done is done.
//!
//! The store is on an ext4 in a file. strace(1) stops warmimg after each call that changes files, and at each
//! stop the file is what a disk would hold whose machine loses its power right then. Such disks are mounted
//! again, and asked. What a file system writes by itself, and when, is chosen by [`Cache`]. How many disks of
//! each kind are asked is in `WARMIMG_POWER`.
//!
//! All is mounted in a mount namespace of the test's thread, which ends with it whatever happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::{linux::fs::MetadataExt as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::syncfs,
};
use serde_json::Value;

use crate::encryption::keys;
use crate::support::{
    Killed, LIMIT, Workspace, ask::Client, below_strace, expect, free_port, server::Server, servers,
};

/// The system calls after which a store is not what it was. (copy_file_range(2) is left out: interrupted, it
/// begins anew. Other calls follow it.)
const CHANGES: &str = "fchmod,fchown,fdatasync,fsync,ftruncate,link,linkat,mkdir,mkdirat,pwrite64,rename,\
                       renameat,renameat2,rmdir,symlink,symlinkat,unlink,unlinkat,write";

/// The size of the disk, and of the parts in which it is compared, in bytes.
const DISK: usize = 32 << 20;
const BLOCK: usize = 4096;

fn wanted() -> usize {
    let set = std::env::var("WARMIMG_POWER").ok();
    set.map_or(2, |set| set.parse().expect("a number"))
}

/// What is on the disk beyond what fsync(2) has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cache {
    /// Nothing, so that what is not asked for is missed.
    Lazy,
    /// Folders and sizes at once, contents not: the worst order.
    NamesFirst,
    /// All, at once.
    Eager,
}

impl Cache {
    const ALL: [Self; 3] = [Self::Lazy, Self::NamesFirst, Self::Eager];

    fn options(self) -> &'static str {
        match self {
            Self::Lazy | Self::NamesFirst => "loop,data=writeback,noauto_da_alloc,commit=300",
            Self::Eager => "loop",
        }
    }

    /// Lets the file system write as much as it is to.
    fn write(self, mounted: &Path) {
        match self {
            Self::Lazy => {}
            Self::NamesFirst => {
                // Any fsync(2) commits the whole journal.
                let path = mounted.join("lost+found/any");
                let mut file = File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .unwrap();
                file.write_all(b"-").unwrap();
                file.sync_all().unwrap();
            }
            Self::Eager => syncfs(File::open(mounted).unwrap()).unwrap(),
        }
    }
}

/// What a disk has done and does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Activity {
    /// In sectors.
    written: u64,
    /// Requests.
    in_flight: u64,
}

/// A file system in a file; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(disk: &Path, place: &Path, options: &str) -> Self {
        fs::create_dir_all(place).unwrap();
        let mut command = Command::new("mount");
        expect(
            0,
            command
                .args(["-t", "ext4", "-o", options])
                .arg(disk)
                .arg(place),
        );
        Self(place.to_path_buf())
    }

    fn activity(&self) -> Activity {
        let device = self.0.metadata().unwrap().st_dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
        let fields: Vec<u64> = stat.split_whitespace().flat_map(str::parse).collect();
        // Of Documentation/block/stat.rst.
        Activity {
            written: fields[6],
            in_flight: fields[8],
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ =
            umount2(&self.0, MntFlags::empty()).or_else(|_| umount2(&self.0, MntFlags::MNT_DETACH));
    }
}

/// A disk after a step.
struct Step {
    /// The call, as strace shows it.
    call: String,
    /// What differs from the disk before, by the offset.
    changed: Vec<(usize, Vec<u8>)>,
}

/// What was on a disk, step by step.
struct Recording {
    disk: PathBuf,
    first: Vec<u8>,
    last: Vec<u8>,
    /// As it was read.
    now: Vec<u8>,
    steps: Vec<Step>,
}

impl Recording {
    fn new(disk: PathBuf) -> Self {
        let first = fs::read(&disk).unwrap();
        let (last, now) = (first.clone(), first.clone());
        Self {
            disk,
            first,
            last,
            now,
            steps: vec![],
        }
    }

    fn read(&mut self) {
        let disk = File::open(&self.disk).unwrap();
        disk.read_exact_at(&mut self.now, 0).unwrap();
    }

    /// Adds what was read.
    fn add(&mut self, call: &str) {
        let call = call.to_owned();
        let mut changed = vec![];
        let blocks = self.now.chunks(BLOCK).zip(self.last.chunks_mut(BLOCK));
        for (number, (now, last)) in blocks.enumerate() {
            if now != last {
                last.copy_from_slice(now);
                changed.push((number * BLOCK, now.to_vec()));
            }
        }
        self.steps.push(Step { call, changed });
    }
}

/// The digests of images, each with its names.
type Images = BTreeMap<String, BTreeSet<String>>;

/// A store on a disk of its own, with an image called `web`.
struct Lab {
    server: Server,
    /// The public and the secret key, if the image is encrypted.
    keys: Option<(String, String)>,
    /// Unmounted before the workspace is removed.
    memory: Mounted,
    workspace: Workspace,
}

impl Lab {
    fn new(server: impl Fn(&Workspace) -> Server) -> Self {
        Self::with(server, |_| None)
    }

    fn encrypted(server: impl Fn(&Workspace) -> Server) -> Self {
        Self::with(server, |workspace| Some(keys(workspace, "key")))
    }

    fn with(
        server: impl Fn(&Workspace) -> Server,
        keys: impl Fn(&Workspace) -> Option<(String, String)>,
    ) -> Self {
        let workspace = Workspace::new();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (none, flags) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, flags, none).unwrap();
        let folder = workspace.path().join("memory");
        fs::create_dir(&folder).unwrap();
        mount(none, &folder, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let lab = Self {
            server: server(&workspace),
            keys: keys(&workspace),
            memory: Mounted(folder),
            workspace,
        };
        let disk = lab.disk("before");
        fs::write(&disk, vec![0; DISK]).unwrap();
        let options = ["-q", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0"];
        expect(0, Command::new("mkfs.ext4").args(options).arg(&disk));
        let mounted = lab.mount("before", "loop");
        expect(0, &mut lab.capture());
        drop(mounted);
        lab
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.memory.0.join(name)
    }

    fn mount(&self, name: &str, options: &str) -> Mounted {
        Mounted::new(&self.disk(name), &self.workspace.store(), options)
    }

    fn capture(&self) -> Command {
        let to = self.keys.iter();
        let to = to.flat_map(|(public, _)| ["--encrypt-to", public]);
        let options: Vec<&str> = ["--name", "web"].into_iter().chain(to).collect();
        self.server.capture(&self.workspace, &options)
    }

    /// The images of the store, and nothing that they are not.
    fn images(&self) -> Images {
        let (printed, complaints) = expect(0, &mut self.workspace.warmimg(["--json", "images"]));
        assert_eq!(complaints, "");
        let image = |line: &str| {
            let image: Value = serde_json::from_str(line).unwrap();
            let names = image["names"].as_array().unwrap().iter();
            let names = names.map(|name| name.as_str().unwrap().to_owned());
            (
                image["digest"].as_str().unwrap().to_owned(),
                names.collect(),
            )
        };
        printed.lines().map(image).collect()
    }

    /// Runs a command on a copy of the store, and records what is on the disk meanwhile; returns what the
    /// store was before and is afterwards.
    fn record(&self, command: &Command, cache: Cache) -> (Recording, Images, Images) {
        fs::copy(self.disk("before"), self.disk("now")).unwrap();
        let mounted = self.mount("now", cache.options());
        let before = self.images();
        syncfs(File::open(&mounted.0).unwrap()).unwrap();
        let mut recording = Recording::new(self.disk("now"));
        let mut seen = mounted.activity();
        stop_at_each_change(command, |call| {
            cache.write(&mounted.0);
            while seen != mounted.activity() {
                let activity = mounted.activity();
                recording.read();
                // Nothing was written while it was read.
                if activity == mounted.activity() && activity.in_flight == 0 {
                    recording.add(call);
                    seen = activity;
                }
            }
        });
        recording.read();
        recording.add("its end");
        let after = self.images();
        self.workspace.run(["stop", "--all"]);
        self.server.wait_for_silence();
        (recording, before, after)
    }

    /// Takes the power away from a command, at steps as far from each other as can be.
    fn try_all(&self, what: &str, command: impl Fn(&Self) -> Command, then: impl Fn(&Self, bool)) {
        let (mut tried, mut steps) = (0, 0);
        for cache in Cache::ALL {
            let (recording, before, after) = self.record(&command(self), cache);
            let (mut disk, count) = (recording.first, recording.steps.len());
            let chosen = spread(count, wanted());
            for (number, step) in recording.steps.iter().enumerate() {
                for (offset, block) in &step.changed {
                    disk[*offset..offset + block.len()].copy_from_slice(block);
                }
                if chosen.contains(&number) {
                    println!("{what}, {cache:?}, {number} of {count}: {}", step.call);
                    fs::write(self.disk("after"), &disk).unwrap();
                    let _mounted = self.mount("after", "loop");
                    let found = self.check(&before, &after);
                    let is_last = number + 1 == count;
                    if is_last {
                        assert_eq!(found, after, "what was done is to stay");
                        self.bring_back();
                    }
                    then(self, is_last);
                }
            }
            tried += chosen.len();
            steps += count;
        }
        println!("{what}: {tried} of {steps} disks, all whole");
        self.workspace.assert_clean();
    }

    /// Checks a store after a power loss; returns its images.
    fn check(&self, before: &Images, after: &Images) -> Images {
        let found = self.images();
        for digest in before.keys().filter(|digest| after.contains_key(*digest)) {
            assert!(found.contains_key(digest), "{digest} is gone");
        }
        for digest in found.keys() {
            assert!(
                before.contains_key(digest) || after.contains_key(digest),
                "{digest}"
            );
        }
        let names = |images: &Images| images.values().flatten().cloned().collect::<BTreeSet<_>>();
        for name in names(before).intersection(&names(after)) {
            assert!(names(&found).contains(name), "{name} is gone");
        }
        let (_, complaints) = expect(0, &mut self.workspace.warmimg(["verify", "--all"]));
        assert_eq!(complaints, "");
        self.workspace.run(["stop", "--all"]);
        // Nothing is left of what was being made.
        assert_eq!(self.listing("names"), names(&found));
        assert_eq!(self.listing("staging"), BTreeSet::new());
        let digests = found.keys().cloned().collect();
        assert!(self.listing("failures").is_subset(&digests));
        found
    }

    fn listing(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.workspace.store().join(folder));
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        entries
            .into_iter()
            .flatten()
            .map(|entry| name(entry.unwrap()))
            .collect()
    }

    /// Restores what is called `web`, if anything is.
    fn bring_back(&self) {
        if self.listing("names").contains("web") {
            let key = self.keys.iter();
            let key = key.flat_map(|(_, secret)| ["--identity", secret]);
            let restore = ["restore", "-d", "web"].into_iter().chain(key);
            self.workspace.run(restore);
            self.server.client.ask_until_answered();
            self.workspace.run(["stop", "--all"]);
            self.server.wait_for_silence();
            self.workspace.run(["close", "--all"]);
        }
    }
}

/// Runs a command, which stands still after each call of [`CHANGES`] until it has been looked at.
fn stop_at_each_change(command: &Command, mut look: impl FnMut(&str)) {
    let (trace, inject) = (
        format!("trace={CHANGES}"),
        format!("inject={CHANGES}:signal=STOP"),
    );
    // The process itself is the one that is traced (-D).
    let options = ["-D", "-o", "/dev/stdout", "-e", &trace, "-e", &inject];
    let mut strace = below_strace(command, &options);
    let strace = strace.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = Killed(strace.spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        lines
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    let mut call = String::new();
    loop {
        match receiver.recv_timeout(LIMIT) {
            Ok(line) if line.starts_with("--- stopped by SIGSTOP") => {
                look(&call);
                child.signal(Signal::SIGCONT);
            }
            Ok(line) if !line.starts_with("---") => call = line,
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return assert_eq!(child.wait(), Some(0)),
            Err(RecvTimeoutError::Timeout) => panic!("after {call}"),
        }
    }
}

/// Some of the numbers below `count`, as far from each other as can be.
fn spread(count: usize, wanted: usize) -> BTreeSet<usize> {
    let wanted = wanted.min(count);
    (1..=wanted).map(|i| i * count / wanted - 1).collect()
}

/// A server that ends when it has answered, or, if it is told to, crashes instead.
const ONCE: &str = "
import os, signal, socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
connection, _ = listener.accept()
if os.path.exists('crash'):
    os.unlink('crash')
    os.kill(os.getpid(), signal.SIGSEGV)
connection.recv(65536)
connection.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
";

fn once(workspace: &Workspace) -> Server {
    let (program, port) = (workspace.write("once.py", ONCE), free_port());
    let words = ["/usr/bin/python3", &program, &port.to_string()].map(str::to_owned);
    Server::new(Client::Http(port), words)
}

fn plain(_: &Workspace) -> Server {
    servers::plain("accept", free_port())
}

#[test]
fn captures_survive_a_power_loss() {
    Lab::new(plain).try_all("captures", Lab::capture, |_, _| {});
}

#[test]
fn archives_survive_a_power_loss() {
    let lab = Lab::new(plain);
    let elsewhere = |mut command: Command| {
        let store = lab.workspace.path().join("elsewhere");
        expect(0, command.env("WARMIMG_STORE", store)).0
    };
    let warmimg = |words: &[&str]| lab.workspace.warmimg(words);
    elsewhere(lab.capture());
    elsewhere(warmimg(&["export", "-o", "archive"]));
    for options in [&["archive"][..], &["archive", "--resume"]] {
        let import = [&["import", "--name", "web"], options].concat();
        // It can be tried again, with what has arrived.
        lab.try_all(
            &import.join(" "),
            |_| warmimg(&import),
            |lab, _| {
                expect(0, &mut warmimg(&import));
                assert!(!lab.workspace.store().join("partial").exists());
                lab.check(&lab.images(), &lab.images());
            },
        );
    }
    // It is on the same disk, and takes the place of another.
    let mounted = lab.mount("before", "loop");
    fs::copy(
        lab.workspace.path().join("archive"),
        mounted.0.join("archive"),
    )
    .unwrap();
    drop(mounted);
    lab.try_all(
        "export",
        |_| warmimg(&["export", "web", "-o", "store/archive"]),
        |lab, is_last| {
            let told = elsewhere(warmimg(&["import", "store/archive", "--name", "other"]));
            let digest = lab.images().into_keys().next().unwrap();
            assert!(!is_last || told.contains(&digest[..12]), "{told}");
        },
    );
}

#[test]
fn removals_survive_a_power_loss() {
    let lab = Lab::new(plain);
    let mounted = lab.mount("before", "loop");
    expect(0, &mut lab.capture());
    drop(mounted);
    for words in [&["rm", "web"][..], &["prune", "--all", "--keep", "0"]] {
        lab.try_all(words[0], |lab| lab.workspace.warmimg(words), |_, _| {});
    }
}

#[test]
fn encrypted_images_survive_a_power_loss() {
    let lab = Lab::encrypted(plain);
    lab.try_all("encrypted captures", Lab::capture, |_, _| {});
    let remove = |lab: &Lab| lab.workspace.warmimg(["rm", "web"]);
    lab.try_all("encrypted removals", remove, |_, _| {});
}

#[test]
fn restores_survive_a_power_loss() {
    let lab = Lab::new(plain);
    for words in [&["restore", "-d", "web"][..], &["rehearse", "web"]] {
        lab.try_all(words[0], |lab| lab.workspace.warmimg(words), |_, _| {});
    }
}

/// The image fails, which is noted, and the server is started cold.
#[test]
fn failures_survive_a_power_loss() {
    let lab = Lab::new(once);
    let run = |lab: &Lab| {
        lab.workspace.write("crash", "");
        let client = lab.server.client.clone();
        thread::spawn(move || client.ask_until_answered());
        let mut words = vec!["run", "--name", "web", "--"];
        words.extend(lab.server.command.iter().map(String::as_str));
        lab.workspace.warmimg(words)
    };
    lab.try_all("run", run, |lab, is_last| {
        assert!(!is_last || lab.listing("failures").len() == 1);
    });
}
