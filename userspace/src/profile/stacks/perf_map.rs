//! The files in which virtual machines name the code that they made: `/tmp/perf-PID.map`, as
//! `perf` reads them (tools/perf/Documentation/jit-interface.txt).

use std::{collections::BTreeMap, time::SystemTime};

use super::files;

/// Larger files are not read.
const LIMIT: u64 = 256 << 20;

/// Functions by their first addresses, without overlap.
#[derive(Debug, Default)]
pub struct PerfMap(BTreeMap<u64, (u64, String)>);

impl PerfMap {
    /// Reads the file of a process, by its pid in its own namespace. A file from before `since` is that
    /// of another process.
    pub fn read(pid: i32, since: SystemTime) -> Self {
        let path = format!("/tmp/perf-{pid}.map");
        let written = |file: &std::fs::File| file.metadata().and_then(|data| data.modified());
        files::open(&path)
            .filter(|file| written(file).is_ok_and(|at| at >= since))
            .and_then(|file| files::read(file, LIMIT))
            .map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes)))
            .unwrap_or_default()
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut map = Self::default();
        for line in text.lines() {
            let mut fields = line.trim_start().splitn(3, ' ');
            let mut number = || {
                let digits = fields.next()?.trim_start_matches("0x");
                u64::from_str_radix(digits, 16).ok()
            };
            let (Some(start), Some(length)) = (number(), number()) else {
                continue;
            };
            if let Some(name) = fields.next() {
                map.insert(start, start.saturating_add(length), name);
            }
        }
        map
    }

    /// What was made later is in the place of what was there before.
    fn insert(&mut self, start: u64, end: u64, name: &str) {
        let before = self.0.range(..start).next_back();
        let first = before.filter(|(_, (end, _))| *end > start);
        let first = first.map_or(start, |(&first, _)| first);
        let covered: Vec<u64> = self.0.range(first..end).map(|(&start, _)| start).collect();
        for start in covered {
            self.0.remove(&start);
        }
        self.0.insert(start, (end, name.to_owned()));
    }

    pub fn look_up(&self, address: u64) -> Option<&str> {
        let (_, (end, name)) = self.0.range(..=address).next_back()?;
        (address < *end).then_some(name.as_str())
    }
}

/// Tells a function from the place that it is in, where the virtual machine names both.
pub fn split(name: &str) -> (String, Option<String>) {
    // Python: "py::function:/path/file.py".
    if let Some((function, source)) = name
        .strip_prefix("py::")
        .and_then(|rest| rest.split_once(':'))
    {
        return (function.to_owned(), Some(source.to_owned()));
    }
    // Node: "JS:~function /path/file.js:10:3"; the sign tells how it was compiled.
    if let Some(rest) = name.strip_prefix("JS:") {
        let rest = rest.trim_start_matches(['~', '^', '*', '+']);
        if let Some((function, source)) = rest.split_once(' ') {
            let function = if function.is_empty() {
                "(anonymous)"
            } else {
                function
            };
            return (function.to_owned(), Some(source.to_owned()));
        }
        return (rest.to_owned(), None);
    }
    (name.to_owned(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_wins() {
        let map = PerfMap::parse(
            "1000 100 first\n\
             1080 20 second with spaces\n\
             0x2000 0x10 third\n\
             bad line\n\
             3000 10\n",
        );
        assert_eq!(map.look_up(0x1000), None, "its code was overwritten");
        assert_eq!(map.look_up(0x1080), Some("second with spaces"));
        assert_eq!(map.look_up(0x109f), Some("second with spaces"));
        assert_eq!(map.look_up(0x10a0), None);
        assert_eq!(map.look_up(0x200f), Some("third"));
        assert_eq!(map.look_up(0x3000), None);
    }

    #[test]
    fn names_of_virtual_machines() {
        let source = |text: &str| Some(text.to_owned());
        assert_eq!(
            split("JS:~listen /app/server.js:10:3"),
            ("listen".to_owned(), source("/app/server.js:10:3"))
        );
        assert_eq!(
            split("JS:* node:internal/main:1:1"),
            ("(anonymous)".to_owned(), source("node:internal/main:1:1"))
        );
        assert_eq!(
            split("py::main:/app/main.py"),
            ("main".to_owned(), source("/app/main.py"))
        );
        assert_eq!(split("Lorg/Foo;::bar"), ("Lorg/Foo;::bar".to_owned(), None));
    }
}
