//! The client of the servers that hold texts, make others and collect garbage: app.js and load.jsp of
//! tests/servers/load.

use super::{
    Load, Outcome,
    content::{Random, compare, content, sum},
};
use crate::support::ask;

/// How many clients a server has.
pub const CLIENTS: u32 = 2;

/// How many texts it holds; each client has every `CLIENTS`th for itself.
const KEYS: u32 = 600;

/// A text, as it was told to be made.
#[derive(Clone, Copy)]
struct Text {
    seed: u32,
    len: u32,
}

impl Text {
    /// What a server holds from its start on, and so in its image.
    fn first(key: u32) -> Self {
        let len = 2000 + key * 7919 % 50_000;
        Self { seed: key, len }
    }

    fn bytes(self) -> Vec<u8> {
        content(self.seed, self.len as usize)
    }

    fn sum(self) -> String {
        sum(&self.bytes()).to_string()
    }
}

/// Asks a server until the load is over; then for all that it should hold.
pub fn work(load: &Load, port: u16, page: &str, number: u32) -> Outcome {
    let mut random = Random::new(port.into());
    let mut texts: Vec<Text> = (0..KEYS).map(Text::first).collect();
    let mut answers = 0;
    let mut check = |what: &str, expected: &str| {
        let path = format!("{page}?do={what}");
        let answer = ask::get(port, &path).map_err(|error| format!("{path}: {error}"))?;
        let expected = format!("200 {expected}");
        compare(&path, answer.as_bytes(), expected.as_bytes())?;
        answers += 1;
        Ok::<_, String>(())
    };
    let mut next_seed = number << 24;
    while load.goes_on() {
        let key = random.below(KEYS / CLIENTS) * CLIENTS + number;
        let held = texts[key as usize];
        next_seed += 100;
        match random.below(100) {
            0..20 => {
                let text = String::from_utf8_lossy(&held.bytes()).into_owned();
                check(&format!("text&key={key}"), &text)?;
            }
            20..45 => check(&format!("sum&key={key}"), &held.sum())?,
            45..75 => {
                // One of ten is large.
                let most = [50_000, 2_000_000][usize::from(random.below(10) == 0)];
                let (seed, len) = (next_seed, 1 + random.below(most));
                let what = format!("keep&key={key}&seed={seed}&length={len}");
                check(&what, &held.sum())?;
                texts[key as usize] = Text { seed, len };
            }
            75..98 => {
                let what = ["make", "apart"][usize::from(random.below(5) == 0)];
                let (len, parts) = (1 + random.below(60_000), 1 + random.below(50));
                let made = (0..parts).rev().map(|part| {
                    let seed = next_seed + part;
                    Text { seed, len }.bytes()
                });
                let made = sum(&made.collect::<Vec<_>>().concat()).to_string();
                let what = format!("{what}&seed={next_seed}&length={len}&parts={parts}");
                check(&what, &made)?;
            }
            _ => check("collect", "collected")?,
        }
    }
    for key in (number..KEYS).step_by(CLIENTS as usize) {
        check(&format!("sum&key={key}"), &texts[key as usize].sum())?;
    }
    Ok(answers)
}
