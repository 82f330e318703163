//! What is worth acting on, of all that a profile shows.
//!
//! Each rule looks for one thing, and says what it costs. Costs are times of the critical path where
//! that can be told, as only those make a start-up longer; so a rule's cost is no more than what its
//! removal could save.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Class, Finding, Process, Profile, Step};

/// Findings that are told.
const COUNT: usize = 5;

/// What a finding costs at least, as a share of the whole start-up.
const LEAST: f64 = 0.01;

/// Lines of evidence of each.
const EVIDENCE: usize = 4;

/// The findings of a profile, those that cost most first.
pub fn find(profile: &Profile) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES.iter().filter_map(|rule| rule(profile)).collect();
    let least = (profile.length_ns as f64 * LEAST) as u64;
    findings.retain(|finding| finding.cost_ns > least);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.cost_ns));
    findings.truncate(COUNT);
    findings
}

type Rule = fn(&Profile) -> Option<Finding>;

const RULES: [Rule; 11] = [
    own_code, lookups, sleeps, network, peers, storage, processors, children, faults, locks,
    linking,
];

/// A number of nanoseconds for people.
fn ms(nanoseconds: u64) -> String {
    format!("{:.1} ms", nanoseconds as f64 / 1e6)
}

/// A number with commas between the thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The steps of the critical path of a class.
fn steps(profile: &Profile, class: Class) -> impl Iterator<Item = &Step> {
    profile
        .critical_path
        .iter()
        .filter(move |step| step.class == class)
}

fn length(step: &Step) -> u64 {
    step.end_ns - step.start_ns
}

fn cost<'a>(steps: impl Iterator<Item = &'a Step>) -> u64 {
    steps.map(length).sum()
}

/// The process that a step is of.
fn process<'a>(profile: &'a Profile, step: &Step) -> Option<&'a Process> {
    profile
        .processes
        .iter()
        .find(|process| process.pid == step.pid)
}

fn name_of(profile: &Profile, step: &Step) -> String {
    process(profile, step).map_or_else(|| step.pid.to_string(), Process::title)
}

/// What steps are about, the longest sums first: "123.4 ms in openat /etc/hosts".
fn by_text<'a>(profile: &Profile, steps: impl Iterator<Item = &'a Step>) -> Vec<String> {
    let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
    for step in steps {
        let text = step.text.and_then(|text| profile.texts.get(text as usize));
        let text = text.map_or("its own code", String::as_str);
        let sum = sums
            .entry(format!("{text}, {}", name_of(profile, step)))
            .or_default();
        sum.0 += length(step);
        sum.1 += 1;
    }
    lines(sums, |text, (time, times)| match times {
        1 => format!("{} in {text}", ms(time)),
        times => format!("{} in {} times {text}", ms(time), count(times)),
    })
}

/// Lines of the largest sums.
fn lines<K: Ord>(
    sums: impl IntoIterator<Item = (K, (u64, u64))>,
    line: impl Fn(&K, (u64, u64)) -> String,
) -> Vec<String> {
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let sums = sums.iter().take(EVIDENCE);
    sums.map(|(key, sum)| line(key, *sum)).collect()
}

fn own_code(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::User));
    let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
    for step in steps(profile, Class::User) {
        let sum = sums.entry(name_of(profile, step)).or_default();
        sum.0 += length(step);
        sum.1 += 1;
    }
    let mut evidence = hot_functions(profile);
    if evidence.is_empty() {
        evidence = lines(sums, |name, (time, _)| format!("{} in {name}", ms(time)));
    }
    Some(Finding {
        cost_ns,
        title: "code of the server itself".to_owned(),
        evidence,
        advice:
            "load less, or later; an image skips it: `warmimg capture` at the latest point that \
                 your server can be frozen at"
                .to_owned(),
    })
}

/// The functions that threads of the critical path were in most, by samples.
fn hot_functions(profile: &Profile) -> Vec<String> {
    let on_path: HashSet<i32> = profile.critical_path.iter().map(|step| step.tid).collect();
    let stacks = &profile.stacks;
    let mut sums: HashMap<String, (u64, u64)> = HashMap::new();
    for sample in &stacks.samples {
        if !sample.is_on_cpu || !on_path.contains(&sample.tid) {
            continue;
        }
        let node = sample.node.and_then(|node| stacks.nodes.get(node as usize));
        let frame = node.and_then(|node| stacks.frames.get(node.frame as usize));
        let Some(frame) = frame.filter(|frame| !frame.is_kernel) else {
            continue;
        };
        let module = frame.module.as_deref().unwrap_or("unknown");
        let sum = sums
            .entry(format!("{} ({module})", frame.function))
            .or_default();
        sum.0 += sample.weight_ns;
        sum.1 += 1;
    }
    lines(sums, |name, (time, _)| {
        format!("about {} in {name}", ms(time))
    })
}

fn lookups(profile: &Profile) -> Option<Finding> {
    let on_path: HashSet<i32> = profile.critical_path.iter().map(|step| step.pid).collect();
    let lookups = profile.failed_lookups.iter();
    let lookups: Vec<_> = lookups.filter(|of| on_path.contains(&of.pid)).collect();
    let number: u64 = lookups.iter().map(|of| of.count).sum();
    let cost_ns = lookups.iter().map(|of| of.total_ns).sum();
    let mut folders: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for path in lookups.iter().flat_map(|of| &of.examples) {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        folders.entry(folder).or_default().0 += 1;
    }
    let folders = lines(folders, |folder, _| format!("such as in {folder}/"));
    Some(Finding {
        cost_ns,
        title: format!("failed look-ups of files: {}", count(number)),
        evidence: folders,
        advice: "shorten the search path (sys.path, NODE_PATH, the class path, include_path), or \
                 bundle the modules into fewer files"
            .to_owned(),
    })
}

fn sleeps(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Sleep));
    Some(Finding {
        cost_ns,
        title: "sleeping".to_owned(),
        evidence: by_text(profile, steps(profile, Class::Sleep)),
        advice: "wait for what is awaited instead of for a time: a file, a port, a notification"
            .to_owned(),
    })
}

fn network(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Network));
    let mut evidence = by_text(profile, steps(profile, Class::Network));
    evidence.extend(profile.connections.iter().filter_map(|connection| {
        let error = connection.error.as_ref()?;
        Some(format!("{}: {error}", connection.peer))
    }));
    evidence.truncate(EVIDENCE);
    Some(Finding {
        cost_ns,
        title: "waiting for the network".to_owned(),
        evidence,
        advice:
            "connect when it is first needed, to all at the same time, or to what is nearer; an \
                 image does without if the connections may be closed (--tcp-close)"
                .to_owned(),
    })
}

fn peers(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Peer));
    Some(Finding {
        cost_ns,
        title: "waiting for other processes".to_owned(),
        evidence: by_text(profile, steps(profile, Class::Peer)),
        advice: "look at what is at the other end of the pipe or socket".to_owned(),
    })
}

fn storage(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Disk));
    let files = profile.files.iter().filter(|file| file.disk_ns > 0);
    let mut files: Vec<_> = files.collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.disk_ns));
    let files = files.iter().take(EVIDENCE).map(|file| {
        let (time, pages) = (ms(file.disk_ns), count(file.pages_missed));
        format!("{time} for {}, {pages} pages not in memory", file.path)
    });
    let mut evidence: Vec<_> = files.collect();
    if evidence.is_empty() {
        evidence = by_text(profile, steps(profile, Class::Disk));
    }
    Some(Finding {
        cost_ns,
        title: "waiting for storage".to_owned(),
        evidence,
        advice:
            "read fewer or smaller files, or faster storage; profile again to see the start-up \
                 with the files in the page cache"
                .to_owned(),
    })
}

fn processors(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Runnable));
    let on_path: HashSet<i32> = profile.critical_path.iter().map(|step| step.tid).collect();
    let mut others: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for process in &profile.processes {
        for thread in process
            .threads
            .iter()
            .filter(|of| !on_path.contains(&of.tid))
        {
            let sum = others.entry(thread.name.clone()).or_default();
            sum.0 += thread.times.on_cpu();
            sum.1 += 1;
        }
    }
    others.retain(|_, (time, _)| *time > 0);
    Some(Finding {
        cost_ns,
        title: "waiting for a free processor".to_owned(),
        evidence: lines(others, |name, (time, threads)| match threads {
            1 => format!("{} of thread {name}", ms(time)),
            threads => format!("{} of {threads} threads {name}", ms(time)),
        }),
        advice:
            "give it more processors while it starts, or let it start fewer threads and processes"
                .to_owned(),
    })
}

/// Programs that run and end before the server is ready.
fn children(profile: &Profile) -> Option<Finding> {
    let is_short = |step: &&Step| {
        process(profile, step).is_some_and(|of| of.end_ns.is_some() && of.parent.is_some())
    };
    let cost_ns = cost(profile.critical_path.iter().filter(is_short));
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let ended = profile.processes.iter().filter(|of| of.parent.is_some());
    for process in ended {
        let Some(end_ns) = process.end_ns else {
            continue;
        };
        let sum = sums.entry(process.program()).or_default();
        sum.0 += end_ns - process.start_ns;
        sum.1 += 1;
    }
    let number: u64 = sums.values().map(|(_, number)| number).sum();
    Some(Finding {
        cost_ns,
        title: format!(
            "processes that end before the server is ready: {}",
            count(number)
        ),
        evidence: lines(sums, |program, (time, times)| {
            format!("{program}: {}, {} in all", count(times), ms(time))
        }),
        advice:
            "start the server without a script around it, or let the script call fewer programs"
                .to_owned(),
    })
}

fn faults(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Fault));
    let mut sums: HashMap<&str, (u64, u64)> = HashMap::new();
    for faults in &profile.faults {
        let sum = sums.entry(&faults.mapping).or_default();
        sum.0 += faults.total_ns;
        sum.1 += faults.count;
    }
    Some(Finding {
        cost_ns,
        title: "page faults".to_owned(),
        evidence: lines(sums, |mapping, (time, faults)| {
            format!("{} in {} faults of {mapping}", ms(time), count(faults))
        }),
        advice: "touch less memory at the start: smaller pools and caches, no pre-touching"
            .to_owned(),
    })
}

fn locks(profile: &Profile) -> Option<Finding> {
    let cost_ns = cost(steps(profile, Class::Lock));
    Some(Finding {
        cost_ns,
        title: "waiting for locks".to_owned(),
        evidence: by_text(profile, steps(profile, Class::Lock)),
        advice: "see who holds them: the time line shows what each thread does meanwhile"
            .to_owned(),
    })
}

fn linking(profile: &Profile) -> Option<Finding> {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for execution in profile
        .processes
        .iter()
        .flat_map(|process| &process.executions)
    {
        if let Some(linked_ns) = execution.linked_ns {
            let sum = sums.entry(&execution.path).or_default();
            sum.0 += linked_ns - execution.at_ns;
            sum.1 += 1;
        }
    }
    let cost_ns = sums.values().map(|(time, _)| time).sum();
    Some(Finding {
        cost_ns,
        title: "the dynamic linker".to_owned(),
        evidence: lines(sums, |path, (time, times)| match times {
            1 => format!("{} for {path}", ms(time)),
            times => format!("{} for {} times {path}", ms(time), count(times)),
        }),
        advice: "link fewer libraries, or statically".to_owned(),
    })
}
