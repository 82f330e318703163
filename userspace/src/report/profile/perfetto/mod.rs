//! A trace for Perfetto (ui.perfetto.dev): what each thread did, the critical path, milestones,
//! connections, counters, and the stacks.
//!
//! The format is `Trace` of Perfetto's `protos/perfetto/trace/trace.proto`: a row of packets. All
//! are of one sequence, in which a string, frame or stack is written once and then meant by its
//! number; so memory grows with those only. Times are of the clock BOOTTIME, which is 0 when the
//! command is executed; the time of day goes with it.

mod counters;
mod events;
mod intern;
mod packet;
mod samples;
#[cfg(test)]
mod tests;
mod threads;
mod wire;

use std::io::{self, Write};

use self::packet::Output;
use crate::profile::Profile;

/// Writes a profile as a trace for Perfetto.
///
/// # Errors
/// What the output says.
pub fn write(profile: &Profile, out: impl Write) -> io::Result<()> {
    let context = threads::Context::new(profile);
    let mut out = Output::begin(profile, out)?;
    events::milestones(&mut out, profile, &context)?;
    events::critical_path(&mut out, profile, &context)?;
    counters::write(&mut out, profile)?;
    for process in &profile.processes {
        let track = threads::process(&mut out, &context, process)?;
        events::connections(&mut out, profile, process.pid, track)?;
    }
    samples::write(&mut out, profile)?;
    out.end()
}
