//! Images that no longer fit, or are stale: refused, told of, or restored all the same.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::support::{Workspace, ask::Client, expect, free_port, server::Server, wait_for_record};

/// Holds a library, a log and itself; has read its settings by all kinds of names.
const APP: &str = "
import ctypes, http.server, os, sys, time, shop
folder = sys.argv[2]
library = ctypes.CDLL(folder + '/libshop.so')
open(folder + '/settings.json').read()
open('local.conf').read()
open(folder + '/current/release.conf').read()
def below(name, flags):
    fd = os.open(folder + '/conf.d', os.O_RDONLY)
    os.close(os.open(name, flags, dir_fd=fd))
    os.close(fd)
below('site.conf', os.O_RDONLY)
below('temporary', os.O_RDWR | os.O_CREAT)
below('temporary', os.O_RDONLY)
os.remove(folder + '/conf.d/temporary')
log = open(folder + '/app.log', 'a')
time.localtime()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        open(folder + '/page.html').read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(library.version()).encode())
        log.write('asked\\n')
        log.flush()
    def log_message(self, *words):
        pass
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
";

struct Shop {
    workspace: Workspace,
    server: Server,
}

impl Shop {
    fn new() -> Self {
        Self::of(Workspace::new(), APP)
    }

    fn of(workspace: Workspace, app: &str) -> Self {
        let script = workspace.write("app.py", app);
        workspace.write("shop.py", "name = 'shop'\n");
        workspace.write("settings.json", "{}");
        workspace.write("local.conf", "local");
        workspace.write("page.html", "page");
        workspace.write("conf.d/site.conf", "site");
        workspace.write("releases/1/release.conf", "one");
        workspace.write("releases/2/release.conf", "two");
        let path = |name: &str| workspace.path().join(name);
        symlink("releases/1", path("current")).unwrap();
        let source = workspace.write("shop.c", "int version(void) { return 1; }\n");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]);
        expect(0, cc.arg(path("libshop.so")).arg(source));
        let port = free_port();
        let folder = workspace.path().display().to_string();
        let words = ["/usr/bin/python3", &script, &port.to_string(), &folder];
        let server = Server::new(Client::Http(port), words);
        Self { workspace, server }
    }

    fn captured() -> Self {
        let shop = Self::new();
        // The second time, Python reads what it has compiled.
        for _ in 0..2 {
            shop.capture(&[]);
        }
        shop
    }

    fn capture(&self, options: &[&str]) {
        let options = [&["--name", "shop"], options].concat();
        expect(0, &mut self.server.capture(&self.workspace, &options));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workspace.path().join(name)
    }

    fn image(&self) -> PathBuf {
        let store = self.workspace.store();
        let digest = fs::read_to_string(store.join("names/shop")).unwrap();
        store.join("images").join(digest)
    }

    /// The names of the files in the workspace that were read.
    fn read(&self) -> Vec<String> {
        let read = fs::read(self.image().join("fit/read.json")).unwrap();
        let read: Value = serde_json::from_slice(&read).unwrap();
        assert_eq!(read["unrecorded"], 0);
        let paths = read["files"].as_array().unwrap().iter();
        let paths = paths.map(|file| Path::new(file["path"].as_str().unwrap()));
        let own = paths.filter_map(|path| path.strip_prefix(self.workspace.path()).ok());
        own.map(|path| path.display().to_string()).collect()
    }

    /// Verifies; returns the code and what each finding is about.
    fn verify(&self, code: i32) -> Vec<(String, String)> {
        let (printed, _) = expect(code, &mut self.workspace.warmimg(["--json", "verify"]));
        let printed: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(printed["ok"], code != 108);
        findings(&printed["findings"])
    }

    /// Restores, and ends it; returns what was told to be stale.
    fn restore(&self, options: &[&str]) -> Vec<(String, String)> {
        let words = [&["--json", "restore", "-d", "shop"], options].concat();
        let printed: Value = serde_json::from_str(&self.workspace.run(words)).unwrap();
        self.server.client.ask_until_answered();
        self.workspace.run(["stop", "--all"]);
        self.server.wait_for_silence();
        findings(&printed["stale"])
    }

    /// Asserts that it is not restored, and nothing is begun; returns the error.
    fn refuse(&self, code: i32, options: &[&str]) -> String {
        let words = [&["restore", "-d", "shop"], options].concat();
        let error = self.workspace.fail(code, words);
        self.workspace.assert_clean();
        let logs = self.workspace.store().join("logs");
        assert_eq!(fs::read_dir(logs).unwrap().count(), 0, "CRIU was run");
        error
    }

    /// Changes what the image says, as if it had been captured so.
    fn rewrite(&self, change: impl FnOnce(&mut Value)) {
        let folder = self.image();
        let path = folder.join("manifest.json");
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        let digest = blake3::hash(&bytes).to_hex().to_string();
        fs::write(path, bytes).unwrap();
        fs::remove_file(folder.join("seal.json")).unwrap();
        fs::rename(&folder, folder.with_file_name(&digest)).unwrap();
        fs::write(self.workspace.store().join("names/shop"), digest).unwrap();
        self.workspace.warmimg(["verify"]).output().unwrap();
    }

    fn finding(&self, code: &str, name: &str) -> (String, String) {
        (code.to_owned(), self.path(name).display().to_string())
    }
}

fn findings(findings: &Value) -> Vec<(String, String)> {
    let findings = findings.as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .map(|finding| (text(&finding["code"]), text(&finding["about"])))
        .collect()
}

#[test]
fn files_that_were_read_are_known_by_the_names_that_were_given() {
    let shop = Shop::captured();
    let read = shop.read();
    for name in [
        "app.py",
        "settings.json",
        "local.conf",
        "shop.py",
        "current/release.conf",
        "conf.d/site.conf",
    ] {
        assert!(read.iter().any(|path| path == name), "{name}: {read:?}");
    }
    for name in ["app.log", "page.html", "libshop.so"] {
        assert!(!read.iter().any(|path| path == name), "{name}: {read:?}");
    }
    assert_eq!(shop.verify(0), []);
    assert_eq!(shop.restore(&[]), []);
    // What is read for the requests of the warm-up is read as well.
    shop.capture(&["--at", "warm"]);
    let read = shop.read();
    assert!(read.iter().any(|path| path == "page.html"), "{read:?}");
    assert!(!read.iter().any(|path| path == "app.log"), "{read:?}");
    assert_eq!(shop.verify(0), []);
    shop.workspace.assert_clean();
}

#[test]
fn what_was_read_and_has_changed_is_told_of() {
    let shop = Shop::captured();
    // Touched, and replaced by the same.
    for name in ["settings.json", "libshop.so"] {
        let file = File::options().write(true).open(shop.path(name)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        file.set_modified(time).unwrap();
        let (path, copy) = (shop.path(name), shop.path("copy"));
        fs::copy(&path, &copy).unwrap();
        fs::rename(copy, path).unwrap();
    }
    assert_eq!(shop.restore(&["--strict"]), []);
    assert!(shop.image().join("known.json").exists());
    assert_eq!(shop.verify(0), []);

    shop.workspace.write("settings.json", "[]");
    fs::remove_file(shop.path("shop.py")).unwrap();
    fs::remove_file(shop.path("current")).unwrap();
    symlink("releases/2", shop.path("current")).unwrap();
    let mut expected = vec![
        shop.finding("read-changed", "current/release.conf"),
        shop.finding("read-changed", "settings.json"),
        shop.finding("read-missing", "shop.py"),
    ];
    assert_eq!(shop.verify(120), expected);
    assert_eq!(shop.restore(&[]), expected);
    let (printed, _) = expect(120, &mut shop.workspace.warmimg(["verify", "shop"]));
    assert!(printed.starts_with("STALE    shop ("), "{printed}");
    let (printed, _) = expect(0, &mut shop.workspace.warmimg(["restore", "-d", "shop"]));
    shop.server.client.ask_until_answered();
    shop.workspace.run(["stop", "--all"]);
    shop.server.wait_for_silence();
    assert!(
        printed.contains("Warning: the image may be stale\n"),
        "{printed}"
    );
    let error = shop.refuse(120, &["--strict"]);
    assert!(
        error.contains("--allow read-missing,read-changed"),
        "{error}"
    );
    assert_eq!(shop.restore(&["--strict", "--allow", "all"]), []);
    expected.retain(|(code, _)| code != "read-changed");
    assert_eq!(shop.restore(&["--allow", "read-changed"]), expected);
    let error = shop
        .workspace
        .fail(2, ["restore", "--allow", "used-missing"]);
    assert!(
        error.contains("possible values: all, cpu-features"),
        "{error}"
    );
    shop.workspace.assert_clean();
}

#[test]
fn a_library_that_is_another_one_is_refused() {
    let shop = Shop::captured();
    let path = shop.path("libshop.so");
    let mut bytes = fs::read(&path).unwrap();
    let replace = |bytes: &[u8]| {
        fs::copy(&path, shop.path("new")).unwrap();
        fs::write(shop.path("new"), bytes).unwrap();
        fs::rename(shop.path("new"), &path).unwrap();
    };
    // The compiler's name, which is in no page that is used.
    let place = bytes.windows(4).position(|text| text == b"GCC:").unwrap();
    bytes[place] = b'g';
    replace(&bytes);
    let changed = shop.finding("used-changed", "libshop.so");
    assert_eq!(shop.verify(113), std::slice::from_ref(&changed));
    let error = shop.refuse(113, &[]);
    let expected = format!(
        "Error: the image does not fit: used-changed: {}: content ",
        changed.1
    );
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("--allow used-changed\n"), "{error}");
    assert_eq!(shop.restore(&["--allow", "used-changed"]), []);
    // A longer one, which CRIU by itself would refuse.
    bytes.push(0);
    replace(&bytes);
    shop.refuse(113, &[]);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let error = shop.refuse(113, &[]);
    assert!(error.contains("mode 600 instead of mode 755"), "{error}");
    assert_eq!(shop.restore(&["--allow", "used-changed"]), []);

    fs::remove_file(&path).unwrap();
    let missing = shop.finding("used-missing", "libshop.so");
    assert_eq!(shop.verify(113), [missing]);
    let error = shop.refuse(113, &["--allow", "all"]);
    assert!(
        error.contains("nothing helps against used-missing"),
        "{error}"
    );
    shop.workspace.assert_clean();
}

#[test]
fn an_image_of_another_host_is_refused() {
    let shop = Shop::new();
    shop.capture(&[]);
    let about = |code: &str, about: &str| vec![(code.to_owned(), about.to_owned())];
    let mut before = Value::Null;
    let mut check = |member: &str, value: Value, expected: Vec<(String, String)>, can: bool| {
        shop.rewrite(|manifest| {
            if !before.is_null() {
                *manifest = before.clone();
            }
            before = manifest.clone();
            match member {
                "criu" => manifest["criu"]["version"] = value,
                "cpu_features" => {
                    let features = manifest["host"][member].as_array_mut().unwrap();
                    features.push(value);
                }
                _ => manifest["host"][member] = value,
            }
        });
        let code = expected[0].0.clone();
        assert_eq!(shop.verify(113), expected);
        let error = shop.refuse(113, &[]);
        assert!(error.contains(&code), "{error}");
        match can {
            true => assert_eq!(shop.restore(&["--allow", &code]), []),
            false => drop(shop.refuse(113, &["--allow", "all"])),
        }
    };
    check(
        "architecture",
        "s390x".into(),
        about("architecture", "processor"),
        false,
    );
    check(
        "page_size",
        65536.into(),
        about("page-size", "pages of memory"),
        false,
    );
    let feature = "avx_of_tomorrow";
    check(
        "cpu_features",
        feature.into(),
        about("cpu-features", feature),
        true,
    );
    check("kernel", "99.1.0".into(), about("kernel", "Linux"), true);
    let error = shop.workspace.fail(105, ["--criu", "/nowhere", "verify"]);
    assert!(error.contains("no CRIU at /nowhere"), "{error}");
    check("criu", json!([99, 0, 0]), about("criu", "CRIU"), true);
    shop.workspace.assert_clean();
}

#[test]
fn a_checkpoint_of_an_instance_knows_what_was_read_before() {
    let shop = Shop::captured();
    let read = shop.read();
    shop.workspace.run(["restore", "-d", "shop"]);
    shop.server.client.ask_until_answered();
    let instance = wait_for_record(&shop.workspace);
    let id = instance["id"].as_str().unwrap();
    shop.workspace.run(["checkpoint", "--pid", id]);
    shop.server.wait_for_silence();
    assert_eq!(shop.read(), read);
    assert_eq!(shop.verify(0), []);
    shop.workspace.write("settings.json", "[]");
    let expected = [shop.finding("read-changed", "settings.json")];
    assert_eq!(shop.restore(&[]), expected);
    shop.workspace.run(["stop", "--all"]);
    shop.workspace.assert_clean();
}

#[test]
fn images_of_earlier_versions_are_restored() {
    let shop = Shop::new();
    shop.capture(&[]);
    fs::remove_dir_all(shop.image().join("fit")).unwrap();
    shop.rewrite(|manifest| {
        manifest.as_object_mut().unwrap().remove("surroundings");
        for file in manifest["dependencies"].as_array_mut().unwrap() {
            let file = file.as_object_mut().unwrap();
            file.retain(|name, _| ["path", "bytes", "modified_ns", "inode"].contains(&&**name));
        }
        let files = manifest["files"].as_array_mut().unwrap();
        files.retain(|file| file["name"] != "fit/read.json");
    });
    assert_eq!(shop.verify(0), []);
    assert_eq!(shop.restore(&["--strict"]), []);
    let printed = shop.workspace.run(["inspect"]);
    assert!(
        printed.contains("those that it read are not known"),
        "{printed}"
    );
    shop.workspace.assert_clean();
}

#[test]
fn another_environment_host_and_time_zone_are_told_of() {
    let mut shop = Shop::new();
    shop.server = shop.server.environment("SHOP_MODE", "summer");
    shop.capture(&[]);
    let zone = shop.workspace.write("zone", "another time zone");
    let words = "mount --bind \"$0\" /etc/localtime && hostname elsewhere && exec \"$@\"";
    let verify = shop.workspace.warmimg(["--json", "verify"]);
    let mut command = Command::new("unshare");
    command
        .args(["--uts", "--mount", "sh", "-c", words, &zone])
        .arg(verify.get_program())
        .args(verify.get_args())
        .env("WARMIMG_STORE", shop.workspace.store())
        .env("SHOP_MODE", "winter");
    let (printed, _) = expect(120, &mut command);
    assert!(
        !printed.contains("summer") && !printed.contains("winter"),
        "{printed}"
    );
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let told: Vec<_> = findings(&printed["findings"]);
    let expected = [
        ("hostname", "hostname"),
        ("environment", "SHOP_MODE"),
        ("time-zone", "/etc/localtime"),
    ];
    let expected = expected.map(|(code, about)| (code.to_owned(), about.to_owned()));
    assert_eq!(told, expected);
    shop.workspace.assert_clean();
}

#[test]
fn the_record_of_criu_that_is_damaged_is_named() {
    let shop = Shop::new();
    shop.capture(&[]);
    let path = shop.image().join("criu/files.img");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (printed, _) = expect(108, &mut shop.workspace.warmimg(["verify"]));
    let mut lines = printed.lines().skip(1);
    let expected = format!(
        "         criu/files.img is {} bytes long instead of {}",
        bytes.len() - 1,
        bytes.len()
    );
    assert_eq!(lines.next(), Some(&*expected));
    let line = lines.next().unwrap();
    let expected =
        "         criu/files.img is no image that CRIU could read: it is cut short (record ";
    assert!(line.starts_with(expected), "{line}");
    shop.workspace.assert_clean();
}

#[test]
fn the_everyday_check_of_400_mapped_files_takes_less_than_a_millisecond() {
    let maps = "
import mmap
held = []
for number in range(400):
    with open('%s/mapped/%d' % (sys.argv[2], number), 'rb') as file:
        held.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
http.server.HTTPServer";
    let app = APP.replace("\nhttp.server.HTTPServer", maps);
    let shop = Shop::of(Workspace::alone(), &app);
    for number in 0..400 {
        shop.workspace.write(&format!("mapped/{number}"), "content");
    }
    shop.capture(&[]);
    let manifest = fs::read(shop.image().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let held = manifest["dependencies"].as_array().unwrap().iter();
    assert!(held.filter(|file| file["role"] == "mapped").count() >= 400);
    let check = |_| {
        let words = ["--json", "restore", "-d", "--timings", "shop"];
        let printed: Value = serde_json::from_str(&shop.workspace.run(words)).unwrap();
        shop.workspace.run(["stop", "--all"]);
        shop.server.wait_for_silence();
        printed["timings"]["fit_us"].as_u64().unwrap()
    };
    let mut times: Vec<u64> = (0..15).map(check).collect();
    times.sort_unstable();
    println!("the check took {times:?} µs");
    // The one that was disturbed least.
    assert!(times[0] < 1000, "{times:?}");
    shop.workspace.assert_clean();
}
