//! Content that is told by a number: what a server is given, and what its answers are compared with.
//! The servers of tests/servers/load compute the same.

/// Letters by a linear congruential generator.
pub fn content(seed: u32, len: usize) -> Vec<u8> {
    let mut x = seed;
    let letter = |_| {
        x = step(x);
        b'a' + ((x >> 24) % 26) as u8
    };
    (0..len).map(letter).collect()
}

fn step(x: u32) -> u32 {
    x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// FNV-1a of 32 bits.
pub fn sum(bytes: &[u8]) -> u32 {
    let add = |hash: u32, &byte: &u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, add)
}

/// What a client does next, the same in each run.
pub struct Random(u32);

impl Random {
    pub fn new(seed: u32) -> Self {
        Self(step(step(seed)))
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = step(self.0);
        // The upper bits are the better ones.
        ((u64::from(self.0) * u64::from(limit)) >> 32) as u32
    }
}

/// Says where two texts differ, without all of them.
pub fn compare(what: &str, found: &[u8], expected: &[u8]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let pairs = found.iter().zip(expected);
    let at = pairs
        .take_while(|(found, expected)| found == expected)
        .count();
    let part = |bytes: &[u8]| {
        let end = bytes.len().min(at + 60);
        String::from_utf8_lossy(&bytes[at.min(end)..end]).into_owned()
    };
    let (found_len, len) = (found.len(), expected.len());
    let (found, expected) = (part(found), part(expected));
    Err(format!(
        "{what}: from byte {at} on {found:?} of {found_len}, not {expected:?} of {len}"
    ))
}
