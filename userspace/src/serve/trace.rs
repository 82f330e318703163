//! A wake as the time line of a profile: one thread, the gateway's, and a slice for each phase.

use super::wakes::{Phase, Wake};
use crate::{
    profile::{
        Class, Lost, Milestone, MilestoneKind, Process, Profile, SCHEMA, Slice, Stacks, Step,
        Thread, Times,
    },
    watch::CapturePoint,
};

impl Wake {
    /// The time line, of the gateway with this pid.
    pub fn profile(&self, gateway: i32) -> Profile {
        let length_ns = self.took_us * 1000;
        let slices: Vec<Slice> = (0..).zip(&self.phases).map(slice).collect();
        let mut times = Times::default();
        for slice in &slices {
            times.add(slice.class, slice.end_ns - slice.start_ns);
        }
        let step = |slice: &Slice| Step {
            start_ns: slice.start_ns,
            end_ns: slice.end_ns,
            pid: gateway,
            tid: gateway,
            class: slice.class,
            text: slice.text,
        };
        let critical_path = slices.iter().map(step).collect();
        Profile {
            schema: SCHEMA,
            command: vec![
                "wake".to_owned(),
                self.site.clone(),
                self.id.clone(),
                self.instance.clone(),
            ],
            started_ms: self.started_ms,
            point: CapturePoint::Checkpoint,
            length_ns,
            milestones: vec![Milestone {
                at_ns: length_ns,
                pid: gateway,
                kind: MilestoneKind::Restored,
                listener: None,
            }],
            processes: vec![Process {
                pid: gateway,
                parent: None,
                name: "warmimg".to_owned(),
                start_ns: 0,
                end_ns: None,
                wait_status: None,
                executions: vec![],
                threads: vec![Thread {
                    tid: gateway,
                    name: "warmimg".to_owned(),
                    start_ns: 0,
                    end_ns: length_ns,
                    times,
                    slices,
                }],
            }],
            calls: vec![],
            files: vec![],
            failed_lookups: vec![],
            connections: vec![],
            faults: vec![],
            stacks: Stacks::default(),
            critical_path,
            findings: vec![],
            texts: self
                .phases
                .iter()
                .map(|phase| phase.name.to_string())
                .collect(),
            lost: Lost::default(),
        }
    }
}

fn slice((text, phase): (u32, &Phase)) -> Slice {
    Slice {
        start_ns: phase.start_us * 1000,
        end_ns: (phase.start_us + phase.length_us) * 1000,
        class: class(&phase.name),
        text: Some(text),
        waker: None,
    }
}

/// What the gateway does in a phase, mostly.
fn class(phase: &str) -> Class {
    match phase {
        "criu" | "listening" | "detach" => Class::Child,
        "hooks" => Class::Peer,
        _ => Class::User,
    }
}
