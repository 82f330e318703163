//! A small profile with something of everything, for tests: a shell starts a server with two
//! threads, which reads a file from storage, asks a database and listens.

use crate::{
    listener::Listener,
    profile::{
        Calls, Class, Connection, Execution, FailedLookups, Faults, File, Finding, Frame, Lost,
        Milestone, MilestoneKind, Node, Process, Profile, SCHEMA, Sample, Slice, Stacks, Step,
        Thread, Times,
    },
    watch::CapturePoint,
};

/// In microseconds.
type Row = (u64, u64, Class, Option<u32>, Option<i32>);

const SHELL: i32 = 300;
const SERVER: i32 = 301;
const WORKER: i32 = 302;

/// The profile.
pub(crate) fn profile() -> Profile {
    Profile {
        schema: SCHEMA,
        command: ["sh", "-c", "node app.js; \"true\""]
            .map(str::to_owned)
            .into(),
        started_ms: 1_790_000_000_123,
        point: CapturePoint::Ready,
        length_ns: 100_000_000,
        milestones: vec![
            milestone(90_000, MilestoneKind::Listen),
            milestone(95_000, MilestoneKind::Ready),
        ],
        processes: processes(),
        calls: vec![
            calls(SHELL, "vfork", 1, 1_200),
            calls(SERVER, "openat", 240, 3_000),
            calls(SERVER, "read", 410, 41_000),
        ],
        files: vec![file("/srv/app.js", 8_192, 2), file("/usr/bin/node", 0, 340)],
        failed_lookups: vec![FailedLookups {
            pid: SERVER,
            count: 2_314,
            total_ns: 6_000_000,
            examples: vec!["/srv/node_modules/a.mjs".into()],
        }],
        connections: vec![Connection {
            pid: SERVER,
            tid: SERVER,
            peer: "10.0.0.5:5432".into(),
            name: Some("db.internal".into()),
            resolved_ns: Some(4_000_000),
            start_ns: 60_000_000,
            connected_ns: Some(62_000_000),
            first_byte_ns: Some(80_000_000),
            waited_ns: 19_500_000,
            error: None,
        }],
        faults: vec![Faults {
            pid: SERVER,
            mapping: "[heap]".into(),
            count: 900,
            major: 0,
            total_ns: 2_000_000,
        }],
        stacks: stacks(),
        critical_path: vec![
            step((0, 2_000), SHELL, Class::User, None),
            step((2_000, 60_000), SERVER, Class::User, None),
            step((60_000, 80_000), SERVER, Class::Network, Some(3)),
            step((80_000, 100_000), SERVER, Class::User, None),
        ],
        findings: vec![Finding {
            cost_ns: 6_000_000,
            title: "2,314 failed look-ups of files".into(),
            evidence: vec!["/srv/node_modules/a.mjs".into()],
            advice: "Name files with their extension.".into(),
        }],
        texts: [
            "read /srv/app.js",
            "said by none",
            "futex",
            "read db.internal:5432",
        ]
        .map(str::to_owned)
        .into(),
        lost: Lost {
            events: 0,
            samples: 3,
            stacks_cut: 0,
            slices_joined: 12,
            texts_cut: 1,
        },
    }
}

fn milestone(at_us: u64, kind: MilestoneKind) -> Milestone {
    let address = "127.0.0.1:3000".parse().unwrap();
    Milestone {
        at_ns: at_us * 1_000,
        pid: SERVER,
        kind,
        listener: Some(Listener::Tcp { address }),
    }
}

fn processes() -> Vec<Process> {
    use Class::{Child, Disk, Files, Lock, Network, Runnable, User};
    let shell = [
        (0, 2_000, User, None, None),
        (2_000, 100_000, Child, None, None),
    ];
    let server = [
        (1_000, 2_000, Runnable, None, Some(SHELL)),
        (2_000, 10_000, User, None, None),
        // One system call in three parts.
        (10_000, 11_000, Files, Some(0), None),
        (11_000, 40_000, Disk, Some(0), None),
        (40_000, 41_000, Files, Some(0), None),
        (41_000, 60_000, User, None, None),
        (60_000, 80_000, Network, Some(3), None),
        (80_000, 100_000, User, None, None),
    ];
    let worker = [
        (50_000, 70_000, User, None, None),
        (70_000, 100_000, Lock, Some(2), Some(SERVER)),
    ];
    vec![
        Process {
            pid: SHELL,
            parent: None,
            name: "sh".into(),
            start_ns: 0,
            end_ns: None,
            wait_status: None,
            executions: vec![execution(0, "/bin/sh", Some(1_000))],
            threads: vec![thread(SHELL, "sh", &shell)],
        },
        Process {
            pid: SERVER,
            parent: Some(SHELL),
            name: "node".into(),
            start_ns: 1_000_000,
            end_ns: Some(100_000_000),
            wait_status: Some(256),
            executions: vec![execution(2_000, "/usr/bin/node", None)],
            threads: vec![
                thread(SERVER, "node", &server),
                thread(WORKER, "worker;1", &worker),
            ],
        },
    ]
}

fn execution(at_us: u64, path: &str, linked_us: Option<u64>) -> Execution {
    Execution {
        at_ns: at_us * 1_000,
        path: path.into(),
        linked_ns: linked_us.map(|us| us * 1_000),
    }
}

fn thread(tid: i32, name: &str, rows: &[Row]) -> Thread {
    let slices: Vec<Slice> = rows
        .iter()
        .map(|&(start, end, class, text, waker)| Slice {
            start_ns: start * 1_000,
            end_ns: end * 1_000,
            class,
            text,
            waker,
        })
        .collect();
    let mut times = Times::default();
    for slice in &slices {
        times.add(slice.class, slice.end_ns - slice.start_ns);
    }
    Thread {
        tid,
        name: name.into(),
        start_ns: slices[0].start_ns,
        end_ns: slices[slices.len() - 1].end_ns,
        times,
        slices,
    }
}

fn calls(pid: i32, name: &str, count: u64, total_us: u64) -> Calls {
    Calls {
        pid,
        name: name.into(),
        count,
        errors: 0,
        total_ns: total_us * 1_000,
        self_ns: total_us * 100,
    }
}

fn file(path: &str, bytes_read: u64, pages_missed: u64) -> File {
    File {
        path: path.into(),
        opens: 1,
        reads: 2,
        bytes_read,
        self_ns: 400_000,
        disk_ns: pages_missed * 80_000,
        pages_missed,
    }
}

fn step((start, end): (u64, u64), pid: i32, class: Class, text: Option<u32>) -> Step {
    Step {
        start_ns: start * 1_000,
        end_ns: end * 1_000,
        pid,
        tid: pid,
        class,
        text,
    }
}

/// `main` calls `compile`, which calls an unknown function, and the kernel's `ep_poll`.
fn stacks() -> Stacks {
    let frame = |function: &str, module: &str, is_kernel: bool| Frame {
        function: function.into(),
        module: Some(module.into()),
        build_id: (!is_kernel).then(|| "00ff12".into()),
        source: None,
        is_kernel,
    };
    let node = |parent, frame| Node { parent, frame };
    let sample = |tid, at_us: u64, weight_us: u64, is_on_cpu, node| Sample {
        pid: SERVER,
        tid,
        at_ns: at_us * 1_000,
        weight_ns: weight_us * 1_000,
        is_on_cpu,
        node,
    };
    Stacks {
        frames: vec![
            frame("main", "/usr/bin/node", false),
            frame("compile(a; b)", "/usr/bin/node", false),
            frame("0x7f00001234", "/usr/lib/libssl.so.3", false),
            frame("ep_poll", "kernel", true),
        ],
        nodes: vec![
            node(None, 0),
            node(Some(0), 1),
            node(Some(1), 2),
            node(Some(0), 3),
        ],
        samples: vec![
            sample(SERVER, 3_000, 1_000, true, Some(1)),
            sample(SERVER, 4_000, 1_000, true, Some(1)),
            sample(SERVER, 5_000, 1_000, true, Some(2)),
            sample(SERVER, 6_000, 1_000, true, None),
            sample(SERVER, 60_000, 20_000, false, Some(3)),
            sample(WORKER, 51_000, 1_000, true, Some(0)),
        ],
    }
}
