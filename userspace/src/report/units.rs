//! Quantities for people.

use std::fmt;

/// A number of bytes, in binary units.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// Microseconds, shown as milliseconds.
pub struct Milliseconds(pub u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0 as f64 / 1000.0)
    }
}

/// Microseconds, shown as milliseconds with nothing rounded, so that sums are right.
pub struct Microseconds(pub u64);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:03} ms", self.0 / 1000, self.0 % 1000))
    }
}

/// How long ago something was.
pub struct Age {
    seconds: u64,
}

impl Age {
    /// Since a time in milliseconds of the Unix epoch.
    pub fn since(ms: u64) -> Self {
        Self {
            seconds: crate::store::now_ms().saturating_sub(ms) / 1000,
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            s if s < 120 => write!(f, "{s} s ago"),
            s if s < 2 * 3600 => write!(f, "{} min ago", s / 60),
            s if s < 48 * 3600 => write!(f, "{} h ago", s / 3600),
            s => write!(f, "{} days ago", s / 86400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_unit_that_fits() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(3 << 30).to_string(), "3.0 GiB");
        assert_eq!(Milliseconds(1234).to_string(), "1.2 ms");
        assert_eq!(format!("{:>9}", Microseconds(12_034)), "12.034 ms");
        assert_eq!(Age { seconds: 90 }.to_string(), "90 s ago");
        assert_eq!(Age { seconds: 7200 }.to_string(), "2 h ago");
    }
}
