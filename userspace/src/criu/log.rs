//! Reads CRIU's log for people.

use std::{fs, path::Path};

use crate::output::tail;

/// The last lines of a log that are errors or warnings; if there are none, just the last lines.
pub fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let is_trouble = |line: &&str| line.contains("Error (") || line.contains("Warn  (");
    let trouble: Vec<&str> = text.lines().filter(is_trouble).collect();
    if trouble.is_empty() {
        return tail(text.as_bytes(), count);
    }
    let skip = trouble.len().saturating_sub(count);
    trouble[skip..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_before_debug_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            &file,
            "(00.1) Dumping\n(00.2) Error (x.c:1): no\n(00.3) Unlock\n",
        )
        .unwrap();
        assert_eq!(last_lines(file.path(), 5), ["(00.2) Error (x.c:1): no"]);
        fs::write(&file, "a\nb\nc\n").unwrap();
        assert_eq!(last_lines(file.path(), 2), ["b", "c"]);
        assert!(last_lines(Path::new("/no/such/log"), 2).is_empty());
    }
}
