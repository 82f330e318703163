//! Where threads ran, as `PerfSample`s. They are counted and not weighed by those who read them; so
//! the stacks of waits, which are of any length, are with the slices instead.

use std::io::{self, Write};

use super::packet::Output;
use crate::profile::Profile;

pub fn write<W: Write>(out: &mut Output<W>, profile: &Profile) -> io::Result<()> {
    let stacks = &profile.stacks;
    let mut samples: Vec<_> = stacks.samples.iter().filter(|s| s.is_on_cpu).collect();
    samples.sort_by_key(|sample| sample.at_ns);
    // The processor time until then, which readers show as the counter that the samples are of.
    let mut counted_ns = 0;
    for sample in samples {
        counted_ns += sample.weight_ns;
        let stack = sample
            .node
            .and_then(|node| out.interned.stack(stacks, node));
        if let Some(stack) = stack {
            out.sample((sample.pid, sample.tid), sample.at_ns, stack, counted_ns)?;
        }
    }
    Ok(())
}
