//! What differs between two images: a pure function of their manifests and their memory.
//!
//! Memory is compared where it is the same: processes by their pid, mappings by address, else by
//! what is mapped and how much, else by what is mapped, in their order. For the addresses of a server
//! differ from start to start. A page whose content is elsewhere in the other image is counted by
//! itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
};

use serde::Serialize;

use crate::{
    edit::{Content, Mapping, ProcessPages},
    store::Manifest,
    tree::{NsPid, ProcessInfo},
};

/// What differs between two images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Command, capture point, listeners, user, and where it was captured.
    pub settings: Vec<Change<String>>,
    /// Variables by their names.
    pub environment: Vec<Change<String>>,
    pub processes: Vec<Change<ProcessInfo>>,
    /// Files outside the images that a restore opens.
    pub dependencies: Vec<Change<FileState>>,
    /// Files of the images.
    pub files: Vec<Change<FileState>>,
    /// By pid and mapping.
    pub memory: Vec<MappingDiff>,
    pub total: PageCounts,
}

/// Something that only one has, or that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change<T> {
    pub what: String,
    pub before: Option<T>,
    pub after: Option<T>,
}

/// What is compared of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileState {
    pub bytes: u64,
    /// The digest of an image's file, or the modification time and the inode of another.
    pub identity: String,
}

/// How the pages of two mappings compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MappingDiff {
    pub pid: NsPid,
    pub what: String,
    /// The addresses, if the image has the mapping.
    pub before: Option<(u64, u64)>,
    pub after: Option<(u64, u64)>,
    #[serde(flatten)]
    pub pages: PageCounts,
}

/// Numbers of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageCounts {
    /// In both images, with the same content.
    pub same: u64,
    /// In both images, with another.
    pub different: u64,
    /// In one image only.
    pub only_before: u64,
    pub only_after: u64,
    /// Of those that are not the same, the pages whose content is somewhere in the other image.
    pub moved_before: u64,
    pub moved_after: u64,
}

impl std::ops::AddAssign for PageCounts {
    fn add_assign(&mut self, other: Self) {
        self.same += other.same;
        self.different += other.different;
        self.only_before += other.only_before;
        self.only_after += other.only_after;
        self.moved_before += other.moved_before;
        self.moved_after += other.moved_after;
    }
}

impl PageCounts {
    /// Whether there is no difference.
    pub fn is_same(&self) -> bool {
        self.different + self.only_before + self.only_after == 0
    }

    /// The pages of the image before, and of that after.
    pub fn sides(&self) -> (u64, u64) {
        let both = self.same + self.different;
        (both + self.only_before, both + self.only_after)
    }
}

/// Compares two images.
pub fn compare(before: (&Manifest, &[ProcessPages]), after: (&Manifest, &[ProcessPages])) -> Diff {
    let (a, b) = (before.0, after.0);
    let memory = memory(before.1, after.1);
    let mut total = PageCounts::default();
    memory.iter().for_each(|mapping| total += mapping.pages);
    Diff {
        settings: changes(settings(a), settings(b)),
        environment: changes(environment(a), environment(b)),
        processes: changes(processes(a), processes(b)),
        dependencies: changes(dependencies(a), dependencies(b)),
        files: changes(files(a), files(b)),
        memory,
        total,
    }
}

fn changes<T: PartialEq>(
    mut before: BTreeMap<String, T>,
    after: BTreeMap<String, T>,
) -> Vec<Change<T>> {
    let mut found = Vec::new();
    for (what, after) in after {
        let before = before.remove(&what);
        if before.as_ref() != Some(&after) {
            found.push(Change {
                what,
                before,
                after: Some(after),
            });
        }
    }
    found.extend(before.into_iter().map(|(what, before)| Change {
        what,
        before: Some(before),
        after: None,
    }));
    found.sort_by(|a, b| a.what.cmp(&b.what));
    found
}

fn settings(manifest: &Manifest) -> BTreeMap<String, String> {
    let command = &manifest.command;
    let listeners: Vec<_> = manifest.listeners.iter().map(ToString::to_string).collect();
    [
        ("command", command.words.join(" ")),
        ("folder", command.working_directory.display().to_string()),
        ("user", command.user.clone().unwrap_or_default()),
        ("point", manifest.capture.point.to_string()),
        ("listeners", listeners.join(", ")),
        ("after restore", manifest.after_restore.join(", ")),
        ("kernel", manifest.host.kernel.clone()),
        ("architecture", manifest.host.architecture.clone()),
        ("processor", manifest.host.cpu_features.join(" ")),
        ("CRIU", manifest.criu.version.to_string()),
    ]
    .into_iter()
    .map(|(what, value)| (what.to_owned(), value))
    .collect()
}

fn environment(manifest: &Manifest) -> BTreeMap<String, String> {
    let variables = manifest.command.environment.iter();
    let split = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    variables.map(split).collect()
}

fn processes(manifest: &Manifest) -> BTreeMap<String, ProcessInfo> {
    let process = |process: &ProcessInfo| {
        // How much of it is resident is told by its pages.
        let compared = ProcessInfo {
            resident_bytes: 0,
            ..process.clone()
        };
        (process.pid.to_string(), compared)
    };
    manifest.processes.iter().map(process).collect()
}

fn dependencies(manifest: &Manifest) -> BTreeMap<String, FileState> {
    let files = manifest.dependencies.iter();
    files
        .map(|file| {
            let identity = format!("{} {}", file.modified_ns, file.inode);
            let bytes = file.bytes;
            (
                file.path.display().to_string(),
                FileState { bytes, identity },
            )
        })
        .collect()
}

fn files(manifest: &Manifest) -> BTreeMap<String, FileState> {
    let files = manifest.files.iter();
    files
        .map(|file| {
            let identity = file.link.clone().unwrap_or_else(|| file.blake3.clone());
            let bytes = file.bytes;
            (file.path().into_owned(), FileState { bytes, identity })
        })
        .collect()
}

fn memory(before: &[ProcessPages], after: &[ProcessPages]) -> Vec<MappingDiff> {
    let (in_before, in_after) = (contents(before), contents(after));
    let mut found = Vec::new();
    let pids = before.iter().chain(after).map(|process| process.pid);
    let pids: std::collections::BTreeSet<NsPid> = pids.collect();
    let mappings = |side: &'_ [ProcessPages], pid| -> Vec<Mapping> {
        let process = side.iter().find(|process| process.pid == pid);
        process.map_or(vec![], |process| process.mappings.clone())
    };
    for pid in pids {
        let (a, b) = (mappings(before, pid), mappings(after, pid));
        for (a, b) in pairs(&a, &b) {
            let pages = count(a, b, &in_before, &in_after);
            if pages == PageCounts::default() {
                continue;
            }
            let what = a.or(b).map(|mapping| mapping.what.clone());
            let extent = |mapping: &Mapping| (mapping.start, mapping.end);
            found.push(MappingDiff {
                pid,
                what: what.unwrap_or_default(),
                before: a.map(extent),
                after: b.map(extent),
                pages,
            });
        }
    }
    found
}

fn contents(side: &[ProcessPages]) -> HashSet<Content> {
    let mappings = side.iter().flat_map(|process| &process.mappings);
    mappings
        .flat_map(|mapping| mapping.pages.values().copied())
        .collect()
}

fn count(
    before: Option<&Mapping>,
    after: Option<&Mapping>,
    in_before: &HashSet<Content>,
    in_after: &HashSet<Content>,
) -> PageCounts {
    let none = BTreeMap::new();
    let before = before.map_or(&none, |mapping| &mapping.pages);
    let after = after.map_or(&none, |mapping| &mapping.pages);
    let mut counts = PageCounts::default();
    for (number, content) in before {
        match after.get(number) {
            Some(other) if other == content => {
                counts.same += 1;
                continue;
            }
            Some(_) => counts.different += 1,
            None => counts.only_before += 1,
        }
        counts.moved_before += u64::from(in_after.contains(content));
    }
    for (number, content) in after {
        let other = before.get(number);
        counts.only_after += u64::from(other.is_none());
        let is_same = other == Some(content);
        counts.moved_after += u64::from(!is_same && in_before.contains(content));
    }
    counts
}

type Pair<'a> = (Option<&'a Mapping>, Option<&'a Mapping>);

/// The mappings of two processes that stand for each other, in the order of those before.
fn pairs<'a>(before: &'a [Mapping], after: &'a [Mapping]) -> Vec<Pair<'a>> {
    let mut partner: Vec<Option<usize>> = vec![None; before.len()];
    let mut taken = vec![false; after.len()];
    pair_by(before, after, &mut partner, &mut taken, |m| {
        (m.what.clone(), m.start, m.protection)
    });
    pair_by(before, after, &mut partner, &mut taken, |m| {
        (m.what.clone(), m.end - m.start, m.protection)
    });
    pair_by(before, after, &mut partner, &mut taken, |m| {
        (m.what.clone(), 0, m.protection)
    });
    let both = before.iter().zip(&partner);
    let both = both.map(|(mapping, partner)| (Some(mapping), partner.map(|at| &after[at])));
    let rest = after.iter().zip(taken).filter(|(_, taken)| !taken);
    both.chain(rest.map(|(mapping, _)| (None, Some(mapping))))
        .collect()
}

/// Pairs those left that have the same key, in their order.
fn pair_by<K: Eq + Hash>(
    before: &[Mapping],
    after: &[Mapping],
    partner: &mut [Option<usize>],
    taken: &mut [bool],
    key: impl Fn(&Mapping) -> K,
) {
    let mut left: HashMap<K, VecDeque<usize>> = HashMap::new();
    for (at, mapping) in after.iter().enumerate().filter(|(at, _)| !taken[*at]) {
        left.entry(key(mapping)).or_default().push_back(at);
    }
    for (mapping, partner) in before.iter().zip(partner) {
        if partner.is_none() {
            *partner = left.get_mut(&key(mapping)).and_then(VecDeque::pop_front);
            partner.iter().for_each(|at| taken[*at] = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, what: &str, pages: &[u8]) -> Mapping {
        let page = |(number, content): (usize, &u8)| (number as u64, Content::of(&[*content]));
        Mapping {
            start,
            end: start + 16 * 4096,
            what: what.into(),
            protection: 3,
            pages: pages.iter().enumerate().map(page).collect(),
        }
    }

    fn process(pid: i32, mappings: Vec<Mapping>) -> ProcessPages {
        ProcessPages {
            pid: NsPid(pid),
            mappings,
        }
    }

    #[test]
    fn pages_are_compared_where_they_are_and_found_where_they_went() {
        let before = [process(
            300,
            vec![
                mapping(0x1000, "[heap]", b"abcd"),
                mapping(0x90000, "lib", b"xy"),
            ],
        )];
        let after = [
            // The heap is elsewhere, as it is at each start.
            process(
                300,
                vec![
                    mapping(0x5000, "[heap]", b"abXc1"),
                    mapping(0xf0000, "[stack]", b"d"),
                ],
            ),
            process(301, vec![mapping(0x1000, "[heap]", b"q")]),
        ];
        let found = memory(&before, &after);
        let heap = PageCounts {
            same: 2,
            different: 2,
            only_before: 0,
            only_after: 1,
            // c and d; c.
            moved_before: 2,
            moved_after: 1,
        };
        assert_eq!((found[0].what.as_str(), found[0].pages), ("[heap]", heap));
        let only = |before, after, moved_after| PageCounts {
            only_before: before,
            only_after: after,
            moved_after,
            ..PageCounts::default()
        };
        assert_eq!(
            (found[1].what.as_str(), found[1].pages),
            ("lib", only(2, 0, 0))
        );
        assert_eq!(
            (found[2].what.as_str(), found[2].pages),
            ("[stack]", only(0, 1, 1))
        );
        assert_eq!((found[3].pid, found[3].pages), (NsPid(301), only(0, 1, 0)));
        assert_eq!(found.len(), 4);
        let same = memory(&after, &after);
        assert!(same.iter().all(|mapping| mapping.pages.is_same()));
    }

    #[test]
    fn what_differs_in_manifests_is_told_by_name() {
        let before = crate::store::sample(1);
        let mut after = before.clone();
        after.command.environment = vec!["MODE=fast".into()];
        after.command.words.push("--fast".into());
        let diff = compare((&before, &[]), (&after, &[]));
        assert_eq!(diff.environment.len(), 1);
        assert_eq!(diff.environment[0].after.as_deref(), Some("fast"));
        let [command] = &diff.settings[..] else {
            panic!("{:?}", diff.settings);
        };
        assert_eq!(command.after.as_deref(), Some("server --fast"));
        assert_eq!(compare((&before, &[]), (&before, &[])).settings, []);
    }
}
