//! Samples real programs on the kernel that is there.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::timeout,
};

use super::*;
use crate::profile::Stacks;

/// Runs 300 ms of its own time in a chain of three calls; then a thread of a child waits 200 ms.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define APART __attribute__((noinline, noclone, noipa))
static volatile unsigned long sink;

APART static void innermost_of_three(void) {
    for (int i = 0; i < 10000; i++) sink += i;
}
APART static void middle_of_three(long *until) {
    long buffer[64] = {0};
    struct timespec now;
    do {
        innermost_of_three();
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
        buffer[now.tv_nsec % 64]++;
    } while (now.tv_sec * 1000000000L + now.tv_nsec < *until);
    sink += buffer[3];
}
APART static void outermost_of_three(void) {
    long until = 300000000L;
    middle_of_three(&until);
    sink++;
}
APART static void rests_here(void) {
    struct timespec wait = { .tv_sec = 0, .tv_nsec = 200000000L };
    nanosleep(&wait, 0);
    sink++;
}
APART static void *in_a_thread(void *none) {
    rests_here();
    return none;
}
APART static void in_a_child(void) {
    pthread_t thread;
    pthread_create(&thread, 0, in_a_thread, 0);
    pthread_join(thread, 0);
}
int main(void) {
    outermost_of_three();
    if (fork() == 0) {
        in_a_child();
        _exit(0);
    }
    int status;
    wait(&status);
    return status;
}
"#;

fn build(folder: &Path) -> PathBuf {
    let (source, program) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&source, PROGRAM).unwrap();
    let status = std::process::Command::new("cc")
        .args(["-O2", "-fomit-frame-pointer", "-pthread", "-g"])
        .args(["-Wl,--build-id", "-o"])
        .args([&program, &source])
        .status()
        .unwrap();
    assert!(status.success());
    program
}

/// A shell that goes on with this script once it is told to.
fn start(script: &str, argument: &Path) -> Child {
    Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("read go; {script}"))
        .arg(argument)
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Samples a script to its end, and reads the rings meanwhile or only then. None without the permission.
async fn sample(script: &str, argument: &Path, is_read: bool) -> Option<(Stacks, Counts)> {
    let mut child = start(script, argument);
    let pid = child.id().unwrap() as i32;
    let size = if is_read { RING } else { SMALLEST_RING };
    let mut sampler = match Sampler::attach_with(pid, FREQUENCY, size) {
        Err(Error::Permission(_)) => {
            eprintln!("skipped: sampling takes CAP_PERFMON");
            return None;
        }
        sampler => sampler.unwrap(),
    };
    let origin = now();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"go\n").await.unwrap();
    let end = async {
        loop {
            tokio::select! {
                status = child.wait() => break status,
                drained = sampler.drain(), if is_read => drained.unwrap(),
            }
        }
    };
    let status = timeout(Duration::from_secs(30), end).await.unwrap();
    assert!(status.unwrap().success());
    Some(sampler.finish().resolve(origin, &HashMap::new()))
}

/// The functions of a sample, outermost first.
fn functions<'a>(stacks: &'a Stacks, sample: &Sample) -> Vec<&'a str> {
    let mut functions = Vec::new();
    let mut at = sample.node;
    while let Some(index) = at {
        let node = stacks.nodes[index as usize];
        functions.push(stacks.frames[node.frame as usize].function.as_str());
        at = node.parent;
    }
    functions.reverse();
    functions
}

/// The time of the samples in which these functions call one another, in milliseconds.
fn milliseconds(stacks: &Stacks, is_on_cpu: bool, chain: &[&str]) -> u64 {
    let samples = stacks.samples.iter();
    let weight: u64 = samples
        .filter(|sample| sample.is_on_cpu == is_on_cpu)
        .filter(|sample| {
            let functions = functions(stacks, sample);
            functions.windows(chain.len()).any(|part| part == chain)
        })
        .map(|sample| sample.weight_ns)
        .sum();
    weight / 1_000_000
}

#[tokio::test]
async fn finds_callers_without_frame_pointers() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(folder.path());
    let Some((stacks, counts)) = sample("exec \"$0\"", &program, true).await else {
        return;
    };
    let chain = [
        "main",
        "outermost_of_three",
        "middle_of_three",
        "innermost_of_three",
    ];
    let ran = milliseconds(&stacks, true, &chain);
    assert!((200..=320).contains(&ran), "{ran} ms of 300, {counts:?}");
    for chain in [&["in_a_thread", "rests_here"], &["main", "in_a_child"]] {
        let waited = milliseconds(&stacks, false, chain);
        let is_plausible = (190..=400).contains(&waited);
        assert!(is_plausible, "{waited} ms of 200 in {chain:?}, {counts:?}");
    }
    let mut rests = stacks.samples.iter().filter(|sample| {
        let functions = functions(&stacks, sample);
        functions.contains(&"rests_here")
    });
    let rest = rests.next().unwrap();
    assert_ne!(rest.pid, stacks.samples[0].pid);
    assert_ne!(rest.pid, rest.tid);
    let mut frames = stacks.frames.iter();
    let main = frames.find(|frame| frame.function == chain[0]).unwrap();
    assert_eq!(main.module.as_deref(), Some("program"));
    assert!(main.build_id.is_some());
    let source = main.source.as_deref().unwrap();
    assert!(source.contains("program.c:"), "{source}");
    assert!(stacks.frames.iter().any(|frame| frame.is_kernel));
    let few = stacks.samples.len() as u64 / 20;
    assert!(counts.lost <= few && counts.cut <= few, "{counts:?}");
}

#[tokio::test]
async fn what_finds_no_room_is_counted() {
    let script = "i=0; while [ $i -lt 400 ]; do /bin/true; i=$((i+1)); done";
    let Some((stacks, counts)) = sample(script, Path::new("sh"), false).await else {
        return;
    };
    assert!(counts.lost > 0);
    assert!(!stacks.samples.is_empty());
}

#[test]
fn lists_of_processors() {
    assert_eq!(parse_processors("0"), Some(vec![0]));
    assert_eq!(parse_processors("0-2,5"), Some(vec![0, 1, 2, 5]));
    assert_eq!(parse_processors("none"), None);
}

#[test]
fn rings_of_many_processors_are_smaller() {
    assert_eq!(ring_size(2), RING);
    assert_eq!(ring_size(128), 512 << 10);
    assert_eq!(ring_size(192), 256 << 10);
    assert_eq!(ring_size(12), 4 << 20);
    assert_eq!(ring_size(10_000), SMALLEST_RING);
}
