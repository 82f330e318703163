//! All parsers of bytes that others made, as targets for a fuzzer (`cargo xtask fuzz`): none may panic,
//! hang or ask for memory without bounds, whatever it is given.
//!
//! Samples of what they read are in `tests/fuzz/corpus`, in a folder for each target; unit tests
//! read them as well, whole and damaged.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    path::Path,
};

use clap::Parser as _;
use probe_ebpf as probe;

use crate::{
    archive, bench, cgroup, cli, edit,
    edit::image::{Image, Kind},
    encryption, guard, hook, listener, lock, memory,
    profile::{self, stacks},
    proxy,
    report::profile::{Folded, Form, json},
    sock_diag, store, target, warmup, watch,
};

/// A parser and what is done with its results.
pub type Target = fn(&[u8]);

/// All targets by their names.
pub const TARGETS: [(&str, Target); 20] = [
    ("archive", archive),
    ("arguments", arguments),
    ("bench-results", bench_results),
    ("btf", btf),
    ("client-hello", client_hello),
    ("criu-edits", criu_edits),
    ("criu-image", criu_image),
    ("dns", dns),
    ("elf", elf),
    ("encrypted", encrypted),
    ("encrypted-header", encrypted_header),
    ("events", events),
    ("http", http),
    ("kernel-files", kernel_files),
    ("manifest", manifest),
    ("perf-map", perf_map),
    ("perf-ring", perf_ring),
    ("profile", profile),
    ("seal", seal),
    ("sock-diag", sock_diag),
];

/// A folder in memory, if there is one, that goes with its guard.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("there is room for a folder")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("there is room for a small file");
}

/// An archive as it comes, and a tar stream that is compressed here and whose checksums are right, so
/// that more than its first bytes are looked at.
fn archive(input: &[u8]) {
    import(input);
    let mut tar = input.to_vec();
    mend_checksums(&mut tar);
    let compressed = zstd::encode_all(&tar[..], 1);
    let compressed = compressed.expect("memory can be written to");
    import(&compressed[..]);
}

fn import(source: impl Read) {
    let folder = folder();
    let store = store::Store::open(folder.path()).expect("the folder can be written to");
    let import = archive::Import {
        store: &store,
        path: Path::new("archive"),
        name: None,
        most_bytes: 1 << 20,
        resume: false,
        progress: &mut |_, _| (),
    };
    match import.run(source) {
        Ok(imported) => {
            let digest = &imported.image.digest;
            let verified = store.verify(digest).expect("what was imported is there");
            assert!(verified.is_whole(), "{verified:?}");
        }
        Err(_) => assert!(store.digests().is_ok_and(|digests| digests.is_empty())),
    }
}

/// Makes the checksum of each header of a tar stream right.
fn mend_checksums(tar: &mut [u8]) {
    const BLOCK: usize = 512;
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..at + BLOCK) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = std::str::from_utf8(&block[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(digits, 8).unwrap_or(0);
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
}

/// A command line, a word a line; and the first line as a value of each kind.
fn arguments(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = cli::Cli::try_parse_from(text.lines());
    let first = text.lines().next().unwrap_or_default();
    let _ = first.parse::<hook::Hook>();
    let _ = first.parse::<hook::Variable>();
    let _ = first.parse::<listener::Publish>();
    let _ = first.parse::<listener::Wanted>();
    let _ = first.parse::<target::Asked>();
    let _ = first.parse::<target::Target>();
    let _ = first.parse::<warmup::Warmup>();
    if let Ok(cpus) = first.parse::<cgroup::Cpus>() {
        let _ = (cpus.to_v1(), cpus.to_v2());
    }
    if let Ok(memory) = first.parse::<cgroup::Memory>() {
        let _ = (memory.to_v1(), memory.to_v2());
    }
}

fn bench_results(input: &[u8]) {
    if let Ok(results) = bench::Results::parse(Path::new("results"), input) {
        for subject in &results.subjects {
            let _ = results.speed_up(subject, bench::results::Timing::FirstByte);
        }
    }
}

fn btf(input: &[u8]) {
    let Ok(btf) = watch::btf::Btf::parse(input) else {
        return;
    };
    for (structure, member) in probe::KERNEL_MEMBERS {
        let _ = btf.offset(structure, member);
        let _ = btf.members(structure);
    }
    let _ = btf.has_tracepoint("sched_process_fork");
    let _ = btf.names().count();
}

/// The first bytes of a connection; what is there does not change with what follows.
fn client_hello(input: &[u8]) {
    use proxy::hello::{Hello, parse};
    let found = parse(input);
    if let Hello::Whole(_) = found {
        assert_eq!(parse(&[input, b"more"].concat()), found);
    }
}

/// A request, an answer, and a body in chunks, which is written anew and read again.
fn http(input: &[u8]) {
    use proxy::http1::head;
    let Ok(Some(len)) = head::Scan::default().find(input) else {
        return;
    };
    let (head, rest) = input.split_at(len);
    let mut fields = [std::mem::MaybeUninit::uninit(); head::MOST_FIELDS];
    if let Ok(request) = head::Request::parse(head, &mut fields) {
        let crosses = |text: &str| text.contains(['\r', '\n', '\0', ' ']);
        assert!(!crosses(request.method) && !crosses(request.target));
    }
    let mut fields = [std::mem::MaybeUninit::uninit(); head::MOST_FIELDS];
    let _ = head::Answer::parse(head, &mut fields, false);
    if let Some((data, again)) = chunks(rest) {
        assert_eq!(chunks(&again).map(|found| found.0), Some(data));
    }
}

/// A body in chunks, and the same written anew.
fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    use proxy::http1::{
        body::{Decoder, Step, encode, encode_end},
        head::Framing,
    };
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut data, mut again) = (Vec::new(), Vec::new());
    loop {
        let len = match decoder.step(bytes).ok()? {
            Step::Skip(len) => len,
            Step::Data(len) => {
                data.extend_from_slice(&bytes[..len]);
                encode(&mut again, &bytes[..len], true);
                len
            }
            Step::Trailers(len) => {
                encode_end(&mut again, &bytes[..len]).ok()?;
                len
            }
            Step::More => return None,
            Step::Done => return Some((data, again)),
        };
        bytes = &bytes[len..];
    }
}

/// The images that edits read, which an input of [`criu_edits`] names by their places.
const EDITED: [&str; 10] = [
    "files.img",
    "core-300.img",
    "mm-300.img",
    "pagemap-300.img",
    "pages-1.img",
    "remap-fpath.img",
    "seccomp.img",
    "memfd.img",
    "pagemap-shmem-1.img",
    "fdinfo-2.img",
];

/// Images, each after the place of its name in [`EDITED`] (a byte) and its length (two bytes), and all
/// edits of them.
fn criu_edits(input: &[u8]) {
    let folder = folder();
    let (images, view) = (folder.path().join("criu"), folder.path().join("view"));
    for folder in [&images, &view] {
        fs::create_dir(folder).expect("the folder is new");
    }
    let mut rest = input;
    while let [place, low, high, following @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(following.len());
        let (image, others) = following.split_at(len);
        if let Some(name) = EDITED.get(usize::from(*place)) {
            write(&images.join(name), image);
        }
        rest = others;
    }
    let address = |port: u16| listener::Listener::Tcp {
        address: ([127, 0, 0, 1], port).into(),
    };
    let (old, new) = (address(8080), address(9090));
    let moves = [(old.clone(), new)];
    let _ = edit::uses(&images);
    let _ = edit::shared_ports(&images);
    let _ = edit::pages(&images);
    let _ = edit::move_listeners(&images, &view, &moves, true);
    let _ = edit::name_deleted(&view, ".1");
    let _ = edit::make_reusable(&images);
    let _ = edit::close_unix(&images, &[1]);
    let _ = edit::before_listen(&images, &old);
    let _ = edit::lay_out(&images);
    let _ = edit::describe_mapped(&images, &folder.path().join("map"), &[].into());
    let _ = edit::accept_changes(&images);
    let _ = edit::take_back(&images);
}

/// An image of CRIU, whatever it is called.
fn criu_image(input: &[u8]) {
    for name in [
        "core-1.img",
        "pipes-data.img",
        "sk-queues.img",
        "tcp-stream-1.img",
        "bpfmap-data.img",
        "ghost-file-1.img",
    ] {
        let _ = edit::whole::parse(name, input);
    }
    let kinds = [
        Kind::Files,
        Kind::Core,
        Kind::Memfd,
        Kind::Mm,
        Kind::Pagemap,
        Kind::RemapFpath,
        Kind::Seccomp,
        Kind::Stats,
    ];
    for kind in kinds {
        let path = Path::new("image");
        if let Ok(image) = Image::parse(path, kind, input) {
            let again = Image::parse(path, kind, &image.to_bytes());
            assert!(again.is_ok_and(|again| again.entries == image.entries));
        }
    }
}

fn dns(input: &[u8]) {
    let _ = profile::names::parse(input);
    let _ = profile::texts::peer(input);
}

/// An executable or library, and what is looked up in it.
fn elf(input: &[u8]) {
    let folder = folder();
    let path = folder.path().join("elf");
    write(&path, input);
    let _ = crate::build_id::build_id(&path);
    let Some(image) = path.to_str().and_then(stacks::elf::Image::read) else {
        return;
    };
    let symbols = stacks::symbols::Symbols::read(&image);
    for address in [0, 0x1000, 0x1139, 0x40_1000, u64::MAX] {
        let _ = (symbols.look_up(address), symbols.source(address));
        let _ = (image.function(address), image.is_entry(address));
        let mapping = stacks::record::Mapping {
            start: 0x5000_0000,
            end: 0x5100_0000,
            offset: address,
            path: String::new(),
        };
        if let Some(bias) = image.bias(&mapping) {
            let _ = image.module(&mapping, bias);
        }
    }
}

/// The key that the samples of [`encrypted`] are encrypted to, which is nobody's.
const IDENTITY: &[u8] =
    b"AGE-SECRET-KEY-1UZK0AA0C8KPDUQQ9VNFED94442MDNJWEW5PDNKMF9P6HNNT3A7MQD2ZZ27\n";

/// An encrypted archive, and a file of keys.
fn encrypted(input: &[u8]) {
    let _ = encryption::Keys::default().add_identities(input);
    if !encryption::is_encrypted(&mut &*input).expect("memory can be read") {
        return;
    }
    let mut keys = encryption::Keys::default();
    let added = keys.add_identities(IDENTITY);
    added.expect("it is what age-keygen has written");
    if let Ok((_, mut archive)) = keys.decrypt(input) {
        import(&mut archive);
        let _ = io::copy(&mut archive, &mut io::sink());
    }
}

/// What is known of an encrypted image without its key.
fn encrypted_header(input: &[u8]) {
    let path = Path::new("header.json");
    if let Ok(header) = store::Header::parse(path, input) {
        let written = serde_json::to_vec(&header).expect("a header can be written");
        let again = store::Header::parse(path, &written);
        assert!(again.is_ok_and(|again| again == header));
    }
}

/// What the probe tells.
fn events(input: &[u8]) {
    let _ = watch::parse(input);
    let _ = watch::recording::parse(input);
    let _ = watch::opens::parse(input);
}

/// Files below /proc.
fn kernel_files(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        let _ = lock::parse(line);
        let _ = guard::mappings::parse(line);
    }
    let _ = listener::parse_unix(&text);
    let _ = memory::parse(&text);
    let _ = crate::host::parse_version(&text);
}

/// A manifest, and what an import and a restore make of it.
fn manifest(input: &[u8]) {
    let Ok(manifest) = store::Manifest::parse(Path::new("manifest.json"), input) else {
        return;
    };
    let _ = manifest.check_files();
    let _ = (manifest.image_bytes(), manifest.created());
    for file in &manifest.files {
        let _ = file.destination();
    }
    let written = serde_json::to_vec(&manifest).expect("a manifest can be written");
    let again = store::Manifest::parse(Path::new("manifest.json"), &written);
    assert!(again.is_ok_and(|again| again == manifest));
}

/// The names that virtual machines and the kernel give to code.
fn perf_map(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let map = stacks::perf_map::PerfMap::parse(&text);
    let kernel = stacks::kallsyms::Kernel::parse(text.clone().into_owned());
    for address in [0, 0x1000, 0x7f00_0000_1000, u64::MAX] {
        let _ = map.look_up(address).map(stacks::perf_map::split);
        let _ = kernel.look_up(address);
    }
    for line in text.lines() {
        let _ = stacks::perf_map::split(line);
        let _ = stacks::symbols::demangle(line);
    }
}

/// A ring, after a byte that tells where it begins anew.
fn perf_ring(input: &[u8]) {
    let Some((&cut, ring)) = input.split_first() else {
        return;
    };
    let (first, second) = ring.split_at(usize::from(cut).min(ring.len()));
    stacks::record::Batch::default().read(first, second, 1);
}

/// A profile in all its forms.
fn profile(input: &[u8]) {
    let Ok(profiles) = json::read_all(input) else {
        return;
    };
    for form in [
        Form::Human { shows_path: true },
        Form::Html,
        Form::Json,
        Form::Perfetto,
        Form::Folded(Folded::Both),
    ] {
        let mut written = Vec::new();
        let done = crate::report::profile::write(&profiles, form, &mut written);
        done.expect("memory can be written to");
        if form == Form::Json {
            let again = json::read_all(&written[..]);
            assert!(again.is_ok_and(|again| again == profiles));
        }
    }
    let _ = profile::diff::compare(&profiles, &profiles);
}

/// What stands beside the manifest.
fn seal(input: &[u8]) {
    let _ = store::seal::Seal::parse(input);
    let _ = serde_json::from_slice::<store::Known>(input);
    let _ = serde_json::from_slice::<store::ReadFiles>(input);
}

/// An answer of the kernel's about Unix sockets.
fn sock_diag(input: &[u8]) {
    let _ = sock_diag::take(input, &mut HashMap::new());
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// How many places of each sample are damaged.
    const PLACES: usize = 24;

    /// The samples of a target.
    fn samples(target: &str) -> Vec<PathBuf> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let entries = fs::read_dir(corpus.join(target)).expect("each target has samples");
        let mut found: Vec<_> = entries
            .map(|entry| entry.expect("readable").path())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn whatever_is_read_nothing_panics() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        assert_eq!(fs::read_dir(corpus).unwrap().count(), TARGETS.len());
        for (name, target) in TARGETS {
            let samples = samples(name);
            assert!(!samples.is_empty(), "{name}");
            target(&[]);
            for sample in samples {
                println!("{}", sample.display());
                let bytes = fs::read(&sample).unwrap();
                target(&bytes);
                for place in (0..bytes.len()).step_by(bytes.len().div_ceil(PLACES).max(1)) {
                    target(&bytes[..place]);
                    for bit in [0, 7] {
                        let mut flipped = bytes.clone();
                        flipped[place] ^= 1 << bit;
                        target(&flipped);
                    }
                }
            }
        }
    }
}
