//! A start-up that never was: a script that runs a migration and then a server of 18 threads, with
//! about 100,000 slices. It is the same at each run.

use std::iter;

use warmimg::{
    listener::Listener,
    profile::{
        Calls, Class, Connection, Execution, FailedLookups, Faults, File, Finding, Frame, Lost,
        Milestone, MilestoneKind, Node, Process, Profile, SCHEMA, Sample, Slice, Stacks, Step,
        Thread, Times,
    },
    watch::CapturePoint,
};

/// What would run if any text of a profile were taken for HTML.
pub const NASTY: &str = "</script><!--<img src=x onerror=\"document.documentElement.id='ran'\">";

const MS: u64 = 1_000_000;
const LENGTH: u64 = 4_200 * MS;
const SLICES_PER_THREAD: u64 = 5_500;

const NAMES: [&str; 18] = [
    "java",
    "GC Thread#0",
    "GC Thread#1",
    "G1 Main Marker",
    "G1 Conc#0",
    "G1 Refine#0",
    "G1 Service",
    "VM Thread",
    "Reference Handler",
    "Finalizer",
    "Signal Dispatcher",
    "C2 CompilerThread0",
    "C1 CompilerThread0",
    "Common-Cleaner",
    "main",
    "Catalina-utility-1",
    "http-nio-8080-Poller",
    "http-nio-8080-Acceptor",
];

/// Numbers that look like chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

pub fn profile() -> Profile {
    let mut chance = Chance(7);
    let texts = texts();
    let processes = processes(&mut chance, texts.len() as u64);
    let critical_path = critical_path(&processes);
    let stacks = stacks(&mut chance, &processes);
    Profile {
        schema: SCHEMA,
        command: ["/srv/shop/start.sh", "--profile", "production", NASTY]
            .map(str::to_owned)
            .to_vec(),
        started_ms: 1_790_000_000_000,
        point: CapturePoint::Ready,
        length_ns: LENGTH,
        milestones: milestones(),
        processes,
        calls: calls(&mut chance),
        files: files(&mut chance),
        failed_lookups: vec![FailedLookups {
            pid: 320,
            count: 2_314,
            total_ns: 41 * MS,
            examples: vec![
                "/srv/shop/lib/libnative.so".to_owned(),
                "/usr/java/packages/lib/libnative.so".to_owned(),
                NASTY.to_owned(),
            ],
        }],
        connections: connections(),
        faults: faults(),
        stacks,
        critical_path,
        findings: findings(),
        texts,
        lost: Lost {
            events: 12,
            stacks_cut: 3,
            ..Lost::default()
        },
    }
}

fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "openat /srv/shop/lib/shop.jar",
        "read /usr/lib/jvm/java-21/lib/modules",
        "futex 0x7f3a2c0008c0",
        "recvfrom 10.0.3.7:5432 (db.internal)",
        "epoll_wait",
        "newfstatat /etc/localtime",
        "mmap libjvm.so",
        "clock_nanosleep 50 ms",
        "wait4 301",
        NASTY,
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend((0..500).map(|n| format!("openat /srv/shop/classes/com/example/Part{n}.class")));
    texts
}

/// What a thread does, by chance: it runs for a third of the time.
fn class(chance: &mut Chance) -> Class {
    match chance.below(24) {
        0..=6 => Class::User,
        7 => Class::Kernel,
        8 => Class::Fault,
        9 | 10 => Class::Files,
        11 => Class::Disk,
        12 => Class::Network,
        13 => Class::Peer,
        14..=16 => Class::Events,
        17 => Class::Sleep,
        18..=20 => Class::Lock,
        21 => Class::Other,
        _ => Class::Runnable,
    }
}

fn thread(chance: &mut Chance, tid: i32, name: &str, span: [u64; 2], texts: u64) -> Thread {
    let [start_ns, end_ns] = span;
    let mean = (end_ns - start_ns) / SLICES_PER_THREAD;
    let mut slices = Vec::new();
    let mut times = Times::default();
    let mut at = start_ns;
    while at < end_ns {
        // Few are long, most are short.
        let length = match chance.below(40) {
            0 => mean * 12,
            1..=8 => mean * 2,
            _ => chance.below(mean).max(200),
        };
        let class = class(chance);
        let end = (at + length).min(end_ns);
        times.add(class, end - at);
        slices.push(Slice {
            start_ns: at,
            end_ns: end,
            class,
            text: (class != Class::User && class != Class::Runnable)
                .then(|| chance.below(texts) as u32),
            waker: (class == Class::Lock).then(|| 320 + chance.below(NAMES.len() as u64) as i32),
        });
        at = end;
    }
    Thread {
        tid,
        name: name.to_owned(),
        start_ns,
        end_ns,
        times,
        slices,
    }
}

/// A thread that does few things, each of which a person can see.
fn simple(tid: i32, name: &str, end_ns: u64, steps: &[(u64, Class, Option<u32>)]) -> Thread {
    let mut slices = Vec::new();
    let mut times = Times::default();
    for (number, &(start_ns, class, text)) in steps.iter().enumerate() {
        let end = steps.get(number + 1).map_or(end_ns, |&(next, ..)| next);
        times.add(class, end - start_ns);
        slices.push(Slice {
            start_ns,
            end_ns: end,
            class,
            text,
            waker: (class == Class::Child).then_some(301),
        });
    }
    Thread {
        tid,
        name: name.to_owned(),
        start_ns: steps[0].0,
        end_ns,
        times,
        slices,
    }
}

fn process(
    pid: i32,
    parent: Option<i32>,
    name: &str,
    program: &str,
    threads: Vec<Thread>,
) -> Process {
    let start_ns = threads[0].start_ns;
    let end_ns = Some(threads[0].end_ns).filter(|&end| end < LENGTH);
    Process {
        pid,
        parent,
        name: name.to_owned(),
        start_ns,
        end_ns,
        wait_status: end_ns.map(|_| if pid == 311 { 256 } else { 0 }),
        executions: vec![Execution {
            at_ns: start_ns + 200_000,
            path: program.to_owned(),
            linked_ns: Some(start_ns + 2 * MS),
        }],
        threads,
    }
}

fn processes(chance: &mut Chance, texts: u64) -> Vec<Process> {
    let script = [
        (0, Class::User, None),
        (60 * MS, Class::Files, Some(5)),
        (80 * MS, Class::Child, Some(8)),
        (1_210 * MS, Class::User, None),
        (1_230 * MS, Class::Child, Some(8)),
    ];
    let migration = [
        (80 * MS, Class::Files, Some(0)),
        (180 * MS, Class::User, None),
        (420 * MS, Class::Network, Some(3)),
        (1_040 * MS, Class::User, None),
        (1_120 * MS, Class::Disk, Some(1)),
    ];
    let check = [
        (70 * MS, Class::User, Some(9)),
        (76 * MS, Class::Other, None),
    ];
    let server = NAMES.iter().zip(320..).map(|(name, tid)| {
        let start = 1_230 * MS + (tid - 320) as u64 * 9 * MS;
        thread(chance, tid, name, [start, LENGTH], texts)
    });
    let server: Vec<Thread> = server.collect();
    vec![
        process(
            300,
            None,
            "start.sh",
            "/bin/sh",
            vec![simple(300, "start.sh", LENGTH, &script)],
        ),
        process(
            311,
            Some(300),
            NASTY,
            "/usr/bin/check",
            vec![simple(311, "check", 79 * MS, &check)],
        ),
        process(
            301,
            Some(300),
            "python3",
            "/usr/bin/python3",
            vec![simple(301, "python3", 1_200 * MS, &migration)],
        ),
        process(
            320,
            Some(300),
            "java",
            "/usr/lib/jvm/java-21/bin/java",
            server,
        ),
    ]
}

/// The script, the migration, and then the server's threads: at a lock, that which let go of it.
fn critical_path(processes: &[Process]) -> Vec<Step> {
    let of = |pid: i32, thread: &Thread, slice: &Slice, start: u64, end: u64| Step {
        start_ns: slice.start_ns.max(start),
        end_ns: slice.end_ns.min(end),
        pid,
        tid: thread.tid,
        class: slice.class,
        text: slice.text,
    };
    let mut steps = Vec::new();
    let parts = [
        (0, 0, 0, 80),
        (2, 0, 80, 1_200),
        (0, 0, 1_200, 1_240),
        (3, 0, 1_240, 1_900),
        (3, 14, 1_900, 2_600),
        (3, 11, 2_600, 2_900),
        (3, 14, 2_900, 4_200),
    ];
    for (process, thread, start, end) in parts {
        let (process, start, end) = (&processes[process], start * MS, end * MS);
        let thread = &process.threads[thread];
        let inside = |slice: &&Slice| slice.end_ns > start && slice.start_ns < end;
        let slices = thread.slices.iter().filter(inside);
        steps.extend(slices.map(|slice| of(process.pid, thread, slice, start, end)));
    }
    steps
}

/// Stacks of up to 24 functions, in which a few take most of the time.
fn stacks(chance: &mut Chance, processes: &[Process]) -> Stacks {
    let frame = |n: u64| Frame {
        function: match n % 5 {
            0 => format!("com.example.shop.Part{n}.initialise"),
            1 => format!("org.springframework.context.Support{n}.refresh(Context, Event[])"),
            2 => format!("JVM_DefineClass{n}"),
            3 => format!("do_syscall_64_{n}"),
            _ => format!("0x7f3a2c{n:06x}"),
        },
        module: (n % 5 != 4).then(|| match n % 5 {
            3 => "[kernel]".to_owned(),
            2 => "/usr/lib/jvm/java-21/lib/server/libjvm.so".to_owned(),
            1 => "spring-context-6.1.jar".to_owned(),
            _ => "shop.jar".to_owned(),
        }),
        build_id: None,
        source: n
            .is_multiple_of(5)
            .then(|| format!("Part{n}.java:{}", n * 7)),
        is_kernel: n % 5 == 3,
    };
    let mut frames: Vec<Frame> = (0..120).map(frame).collect();
    frames[7].function = NASTY.to_owned();
    frames[0].function = "_start".to_owned();
    let mut nodes = vec![Node {
        parent: None,
        frame: 0,
    }];
    let mut depths = vec![1];
    while nodes.len() < 900 {
        let parent = (chance.below(nodes.len() as u64) as usize).min(nodes.len() - 1);
        if depths[parent] < 24 {
            nodes.push(Node {
                parent: Some(parent as u32),
                frame: (nodes.len() as u32 * 7) % 120,
            });
            depths.push(depths[parent] + 1);
        }
    }
    let threads: Vec<(i32, &Thread)> = processes
        .iter()
        .flat_map(|process| iter::repeat(process.pid).zip(&process.threads))
        .collect();
    let samples = (0..6_000).map(|n| {
        let (pid, thread) = threads[chance.below(threads.len() as u64) as usize];
        let node =
            (chance.below(30) != 0).then(|| (chance.below(900) * chance.below(900) / 900) as u32);
        Sample {
            pid,
            tid: thread.tid,
            at_ns: thread.start_ns + chance.below(thread.end_ns - thread.start_ns),
            weight_ns: MS,
            is_on_cpu: n % 3 != 0,
            node,
        }
    });
    let samples = samples.collect();
    Stacks {
        frames,
        nodes,
        samples,
    }
}

fn milestones() -> Vec<Milestone> {
    let listener = Listener::Tcp {
        address: ([0, 0, 0, 0], 8080).into(),
    };
    let milestone = |at_ns, kind, listener| Milestone {
        at_ns,
        pid: 320,
        kind,
        listener,
    };
    vec![
        milestone(3_610 * MS, MilestoneKind::Listen, Some(listener.clone())),
        milestone(3_655 * MS, MilestoneKind::Ready, Some(listener)),
        milestone(4_180 * MS, MilestoneKind::Response, None),
    ]
}

fn calls(chance: &mut Chance) -> Vec<Calls> {
    let names = [
        "openat",
        "read",
        "mmap",
        "futex",
        "newfstatat",
        "mprotect",
        "epoll_wait",
        "connect",
        "madvise",
        "close",
    ];
    let mut calls = Vec::new();
    for (number, name) in names.iter().cycle().take(60).enumerate() {
        let total_ns = chance.below(900 * MS);
        calls.push(Calls {
            pid: [320, 301, 300][number / 10 % 3],
            name: if number < 10 {
                (*name).to_owned()
            } else {
                format!("{name}{}", number / 10)
            },
            count: chance.below(20_000) + 1,
            errors: chance.below(40),
            total_ns,
            self_ns: total_ns / 3,
        });
    }
    calls
}

fn files(chance: &mut Chance) -> Vec<File> {
    let file = |n: u64| File {
        path: match n {
            0 => NASTY.to_owned(),
            1 => "/usr/lib/jvm/java-21/lib/modules".to_owned(),
            _ => format!("/srv/shop/classes/com/example/deep/package/Part{n}.class"),
        },
        opens: 1 + chance.below(4),
        reads: chance.below(90),
        bytes_read: chance.below(40 << 20),
        self_ns: chance.below(9 * MS),
        disk_ns: chance.below(20 * MS),
        pages_missed: chance.below(2_000),
    };
    (0..700).map(file).collect()
}

fn connections() -> Vec<Connection> {
    let connection = |peer: &str, name: Option<&str>, start: u64, error: Option<&str>| Connection {
        pid: 301,
        tid: 301,
        peer: peer.to_owned(),
        resolved_ns: name.map(|_| 3_000_000),
        name: name.map(str::to_owned),
        start_ns: start * MS,
        connected_ns: error.is_none().then_some((start + 12) * MS),
        first_byte_ns: error.is_none().then_some((start + 340) * MS),
        waited_ns: 600 * MS,
        error: error.map(str::to_owned),
    };
    vec![
        connection("10.0.3.7:5432", Some("db.internal"), 421, None),
        connection(
            "[fd00::7]:5432",
            Some("db.internal"),
            419,
            Some("Network is unreachable"),
        ),
        connection(
            "/run/nscd/socket",
            None,
            410,
            Some("No such file or directory"),
        ),
    ]
}

fn faults() -> Vec<Faults> {
    let fault = |mapping: &str, count, major, total| Faults {
        pid: 320,
        mapping: mapping.to_owned(),
        count,
        major,
        total_ns: total * MS,
    };
    vec![
        fault("[anonymous]", 48_120, 0, 96),
        fault("/usr/lib/jvm/java-21/lib/server/libjvm.so", 2_200, 310, 210),
        fault("[heap]", 320, 0, 1),
    ]
}

fn findings() -> Vec<Finding> {
    let finding = |cost: u64, title: &str, evidence: &[&str], advice: &str| Finding {
        cost_ns: cost * MS,
        title: title.to_owned(),
        evidence: evidence.iter().map(|&line| line.to_owned()).collect(),
        advice: advice.to_owned(),
    };
    vec![
        finding(
            1_120,
            "The server is started only after a migration",
            &[
                "start.sh waited for python3 (301) from 80 ms to 1.20 s",
                "620 ms of it for db.internal (10.0.3.7:5432)",
            ],
            "Run the migration when the release is made, not at each start.",
        ),
        finding(
            620,
            "One answer of db.internal took 620 ms",
            &["python3 301: recvfrom 10.0.3.7:5432"],
            "Look at what the database did: the network took 12 ms.",
        ),
        finding(
            41,
            "2,314 failed look-ups of files",
            &[
                "/srv/shop/lib/libnative.so",
                "/usr/java/packages/lib/libnative.so",
                NASTY,
            ],
            "Shorten java.library.path.",
        ),
    ]
}
