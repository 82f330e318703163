//! Stacks as folded lines, `process;thread;outer;…;inner weight`, which flamegraph.pl, inferno and
//! speedscope read. Weights are microseconds.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
};

use crate::profile::{Frame, Profile, Sample, Stacks};

/// Which stacks are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Folded {
    /// Where processors were at work
    #[default]
    OnCpu,
    /// Where threads waited
    OffCpu,
    /// Both, below `on CPU` and `off CPU`
    Both,
}

impl Folded {
    fn has(self, sample: &Sample) -> bool {
        match self {
            Self::OnCpu => sample.is_on_cpu,
            Self::OffCpu => !sample.is_on_cpu,
            Self::Both => true,
        }
    }
}

/// Writes the stacks of a profile, each once, with the sum of its weights. Threads of the same name
/// are added up, and so are processes; frames of the kernel end in `_[k]`, as flamegraph.pl
/// expects of those that it colours apart.
///
/// # Errors
/// What the output says.
pub fn write(profile: &Profile, which: Folded, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    for (stack, nanoseconds) in sums(profile, which) {
        let weight = (nanoseconds + 500) / 1000;
        // Readers drop what has no weight, or refuse it.
        if weight > 0 {
            let Key {
                is_on_cpu,
                process,
                thread,
                node,
            } = stack;
            match (which, is_on_cpu) {
                (Folded::Both, true) => write!(out, "on CPU;")?,
                (Folded::Both, false) => write!(out, "off CPU;")?,
                _ => (),
            }
            write!(out, "{};{}", word(process), word(thread))?;
            match node {
                None => write!(out, ";[unknown]")?,
                Some(node) => {
                    for (_, frame) in frames(&profile.stacks, node) {
                        write!(out, ";{}", label(frame))?;
                    }
                }
            }
            writeln!(out, " {weight}")?;
        }
    }
    out.flush()
}

/// What is one line.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    is_on_cpu: bool,
    process: &'a str,
    thread: &'a str,
    node: Option<u32>,
}

/// The nanoseconds of each stack.
fn sums(profile: &Profile, which: Folded) -> BTreeMap<Key<'_>, u64> {
    let mut names = BTreeMap::new();
    for process in &profile.processes {
        for thread in &process.threads {
            names.insert((process.pid, thread.tid), (&*process.name, &*thread.name));
        }
    }
    let mut sums = BTreeMap::new();
    for sample in profile.stacks.samples.iter().filter(|s| which.has(s)) {
        let known = names.get(&(sample.pid, sample.tid));
        let &(process, thread) = known.unwrap_or(&("[unknown]", "[unknown]"));
        let key = Key {
            is_on_cpu: sample.is_on_cpu,
            process,
            thread,
            node: sample.node,
        };
        *sums.entry(key).or_default() += sample.weight_ns;
    }
    sums
}

/// The frames of a stack with their numbers, the outermost first.
pub(super) fn frames(stacks: &Stacks, innermost: u32) -> Vec<(u32, &Frame)> {
    let mut frames = Vec::new();
    let mut next = stacks.nodes.get(innermost as usize);
    while let Some(node) = next {
        let frame = stacks.frames.get(node.frame as usize);
        frames.extend(frame.map(|frame| (node.frame, frame)));
        next = node
            .parent
            .and_then(|parent| stacks.nodes.get(parent as usize));
    }
    frames.reverse();
    frames
}

/// A function; in its stead its module, if only its address is known, as stackcollapse-perf.pl
/// does: addresses differ from run to run.
fn label(frame: &Frame) -> String {
    let name = match &frame.module {
        Some(module) if frame.function.starts_with("0x") => {
            let file = module.rsplit('/').next().unwrap_or(module);
            format!("[{file}]")
        }
        _ => frame.function.clone(),
    };
    let mark = if frame.is_kernel { "_[k]" } else { "" };
    format!("{}{mark}", word(&name))
}

/// A name without what separates frames and lines.
fn word(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::profile::synthetic;

    fn folded(which: Folded) -> String {
        let mut bytes = Vec::new();
        write(&synthetic::profile(), which, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn equal_stacks_are_added_up() {
        insta::assert_snapshot!(folded(Folded::OnCpu), @"
        node;node;[unknown] 1000
        node;node;main;compile(a: b) 2000
        node;node;main;compile(a: b);[libssl.so.3] 1000
        node;worker:1;main 1000
        ");
    }

    #[test]
    fn waits_are_apart_and_frames_of_the_kernel_marked() {
        insta::assert_snapshot!(folded(Folded::OffCpu), @"node;node;main;ep_poll_[k] 20000");
        let both = folded(Folded::Both);
        assert!(both.contains("off CPU;node;node;main;ep_poll_[k] 20000\n"));
        assert!(both.contains("on CPU;node;worker:1;main 1000\n"));
        assert_eq!(both.lines().count(), 5);
    }

    #[test]
    fn what_is_less_than_half_a_microsecond_is_left_out() {
        let mut profile = synthetic::profile();
        profile
            .stacks
            .samples
            .iter_mut()
            .for_each(|s| s.weight_ns = 100);
        let mut bytes = Vec::new();
        write(&profile, Folded::Both, &mut bytes).unwrap();
        assert!(bytes.is_empty());
    }
}
