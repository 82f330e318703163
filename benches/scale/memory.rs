//! Memory in use: of processes, of the machine, and of files in the page cache.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use procfs::{Current as _, Meminfo};

use crate::support::Workspace;

const MIB: f64 = (1 << 20) as f64;

/// The proportional set size of all that runs in a workspace, in MiB: a page that several
/// processes share counts once in all.
pub fn pss(workspace: &Workspace) -> f64 {
    let processes = workspace.processes();
    processes.iter().map(|(pid, _)| pss_kib(*pid)).sum::<f64>() / 1024.0
}

/// The proportional set size of a process, in KiB.
pub fn pss_kib(pid: i32) -> f64 {
    // One that has just ended has none.
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0.0)
}

/// The processes that the first thread of another has started.
pub fn children(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// What the machine has in use beside the page cache, in MiB: anonymous and shared memory, and
/// page tables.
pub fn in_use() -> f64 {
    let memory = Meminfo::current().unwrap();
    let anonymous = memory.anon_pages.unwrap() + memory.shmem.unwrap();
    (anonymous + memory.page_tables.unwrap()) as f64 / MIB
}

/// What could be had without swapping, in MiB.
pub fn available() -> f64 {
    Meminfo::current().unwrap().mem_available.unwrap() as f64 / MIB
}

/// How much of the files below a folder is in the page cache, in MiB, by fincore(1). Nothing where
/// that is not installed.
pub fn cached(folder: &Path) -> Option<f64> {
    // A file of several names counts once.
    let mut files = HashMap::new();
    add_files(folder, &mut files);
    let output = Command::new("fincore")
        .args(["--bytes", "--noheadings", "--output", "RES"])
        .args(files.values())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes = text.lines().map(|line| line.trim().parse::<f64>().unwrap());
    Some(bytes.sum::<f64>() / MIB)
}

fn add_files(folder: &Path, files: &mut HashMap<(u64, u64), PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else {
            continue;
        };
        if metadata.is_dir() {
            add_files(&entry.path(), files);
        } else if metadata.is_file() && metadata.len() > 0 {
            files.insert((metadata.dev(), metadata.ino()), entry.path());
        }
    }
}
