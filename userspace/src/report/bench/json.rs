//! Results as JSON: the stored form, with what can be computed from it for those who only read.

use serde_json::{Value, json};

use crate::bench::{Results, gate::Finding, results::Timing, warnings::warnings};

/// The results with `summary`, `warnings` and `findings`. Times in the summary are in
/// milliseconds.
pub fn object(results: &Results, findings: &[Finding]) -> Value {
    let mut summary = Vec::new();
    for subject in &results.subjects {
        for timing in Timing::shown(results.settings.requests) {
            let times = subject.times(timing);
            summary.push(json!({
                "subject": subject.kind.to_string(),
                "timing": timing,
                "median": subject.median(timing),
                "min": times.iter().copied().fold(f64::INFINITY, f64::min),
                "max": times.iter().copied().fold(0.0, f64::max),
                "speed_up": results.speed_up(subject, timing),
            }));
        }
    }
    let mut object = json!(results);
    object["summary"] = summary.into();
    object["warnings"] = json!(warnings(results));
    object["findings"] = json!(findings);
    object
}

/// As a file.
pub fn render(results: &Results, findings: &[Finding]) -> String {
    format!("{:#}\n", object(results, findings))
}
