//! One line on a terminal that tells where a capture or transfer is; nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{bench, capture::Progress};

/// The line. It is drawn when there is something new only, since a thread that redraws it would
/// be a second thread at the time of the fork.
pub struct ProgressLine(ProgressBar);

impl ProgressLine {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>4}  {wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub fn show(&self, progress: &Progress) {
        tracing::info!(?progress);
        self.0.set_message(match progress {
            Progress::Attaching => "attaching the probe".to_owned(),
            Progress::StartingUp { after, event } => {
                format!(
                    "starting up: {event} after {:.1} ms",
                    after.as_secs_f64() * 1000.0
                )
            }
            Progress::Hook { hook } => format!("running the hook {hook}"),
            Progress::WarmingUp { warmup, warmups } => {
                format!("warming up: {warmup} of {warmups}")
            }
            Progress::Freezing => "freezing".to_owned(),
            Progress::Dumping { processes: 1 } => "dumping 1 process".to_owned(),
            Progress::Dumping { processes } => format!("dumping {processes} processes"),
            Progress::Storing => "storing the image".to_owned(),
        });
        self.0.tick();
    }

    pub fn show_run(&self, progress: &bench::Progress<'_>) {
        tracing::info!(?progress);
        let bench::Progress {
            run,
            runs,
            warmup,
            subject,
        } = progress;
        let kind = if *warmup { "run to warm up" } else { "run" };
        self.0
            .set_message(format!("{kind} {run} of {runs}: {subject}"));
        self.0.tick();
    }

    /// A bar instead, with a verb before it, for what is counted in bytes.
    pub(super) fn transfer(verb: &'static str) -> Self {
        const TEMPLATE: &str =
            "{prefix} {wide_bar} {bytes} of {total_bytes} {binary_bytes_per_sec} {eta}";
        let line = Self::new();
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            line.0.set_style(style);
        }
        line.0.set_prefix(verb);
        line
    }

    pub fn show_transfer(&self, total: u64, done: u64) {
        if self.0.length() != Some(total) {
            self.0.set_length(total);
        }
        self.0.set_position(done);
    }

    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
