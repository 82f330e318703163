//! Which of several images of a server is best: the one that is fastest to a first response; among
//! those that are as fast, the smallest.

use serde::Serialize;

use super::{
    results::{Results, Subject, Timing},
    statistics::{Pairs, median},
};

/// Slower by no more than this, an image is as fast as another, whatever the interval says.
const NEGLIGIBLE: f64 = 0.02;

/// Slower by more than this, it is not, however wide the interval is.
const NOTICEABLE: f64 = 0.10;

/// The image that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its place among the subjects.
    pub subject: usize,
    pub reason: Reason,
}

/// Why it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Fastest,
    /// As fast as the fastest, and smaller.
    Smaller,
}

/// Chooses among restored images; none if there are none.
pub fn choose(results: &Results) -> Option<Choice> {
    let times = |subject: &Subject| subject.times(Timing::FirstResponse);
    let subjects: Vec<(usize, Vec<f64>, u64)> = results
        .subjects
        .iter()
        .enumerate()
        .filter_map(|(place, subject)| Some((place, times(subject), subject.image.as_ref()?.bytes)))
        .collect();
    let fastest = subjects
        .iter()
        .min_by(|a, b| median(&a.1).total_cmp(&median(&b.1)))?;
    let is_as_fast = |times: &[f64]| {
        let ratio = Pairs::new(times, &fastest.1).ratio();
        ratio.value <= 1.0 + NEGLIGIBLE || (ratio.value <= 1.0 + NOTICEABLE && ratio.low <= 1.0)
    };
    let as_fast = subjects.iter().filter(|(_, times, _)| is_as_fast(times));
    let (chosen, ..) = as_fast.min_by_key(|(_, _, bytes)| bytes)?;
    Some(Choice {
        subject: *chosen,
        reason: match *chosen == fastest.0 {
            true => Reason::Fastest,
            false => Reason::Smaller,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of images with these times in milliseconds and sizes.
    fn results(images: &[([u64; 5], u64)]) -> Results {
        let sample = |ms: &u64| {
            format!(
                r#"{{"listening_ns":1,"first_byte_ns":1,"first_response_ns":{},"last_response_ns":1,
                "resolution_ns":1,"cpu_ns":1,"peak_rss_bytes":1,"pss_bytes":1,"minor_faults":1,
                "major_faults":1,"read_bytes":1,"storage_bytes":1}}"#,
                ms * 1_000_000
            )
        };
        let subject = |(times, bytes): &([u64; 5], u64)| {
            let samples: Vec<_> = times.iter().map(sample).collect();
            format!(
                r#"{{"subject":"restored","point":"ready","command":[],
                "image":{{"digest":"d","bytes":{bytes}}},"samples":[{}]}}"#,
                samples.join(",")
            )
        };
        let stored = include_str!("../../../tests/results/schema-1.json");
        let mut results: Results = serde_json::from_str(stored).unwrap();
        results.subjects = images
            .iter()
            .map(|image| serde_json::from_str(&subject(image)).unwrap())
            .collect();
        results
    }

    #[test]
    fn the_fastest_is_chosen_and_among_equals_the_smallest() {
        let choice = |images: &[([u64; 5], u64)]| {
            choose(&results(images)).map(|choice| (choice.subject, choice.reason))
        };
        assert_eq!(choice(&[]), None);
        let slow = ([100, 101, 102, 103, 104], 1);
        let fast = ([50, 51, 52, 53, 54], 9);
        assert_eq!(choice(&[slow, fast]), Some((1, Reason::Fastest)));
        let as_fast = ([50, 52, 53, 53, 51], 3);
        assert_eq!(choice(&[slow, fast, as_fast]), Some((2, Reason::Smaller)));
        // Slower, if not by much, in every round.
        let slower = ([54, 55, 56, 57, 58], 3);
        assert_eq!(choice(&[fast, slower]), Some((0, Reason::Fastest)));
    }
}
