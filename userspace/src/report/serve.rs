//! What `warmimg serve` tells: a line for each thing that happens to a site.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::{Bytes, Lines, Milliseconds, Report, print, printable, table, units::Microseconds};
use crate::{
    error::Error,
    fit::Finding,
    instance::describe_status,
    memory::Memory,
    proxy::plan::SiteStats,
    serve::{Cause, Config, Event, How, Status, What, wakes::Wake},
};

impl Cause {
    fn describe(self) -> &'static str {
        match self {
            Self::Connection => "a connection waits",
            Self::Asked => "asked to",
            Self::Load => "more connections than it is to have",
            Self::Calm => "fewer connections than it is to have",
            Self::Idle => "no connection for long enough",
            Self::MaxLife => "it has lived for long enough",
            Self::Image => "there is a new image",
        }
    }
}

impl How {
    fn describe(self) -> &'static str {
        match self {
            Self::Restored => "is up",
            Self::StoodBy => "goes on",
            Self::Cold => "is up, started cold,",
        }
    }
}

impl Report {
    /// # Errors
    /// [`Error::Output`], as all that follow.
    pub fn serve_checked(&self, path: &Path, config: &Config) -> Result<(), Error> {
        if self.json {
            let sites: Vec<&String> = config.sites.keys().collect();
            return self.line("serve-check", json!({ "path": path, "sites": sites }));
        }
        let count = config.sites.len();
        let sites = if count == 1 { "site" } else { "sites" };
        print(format!("{}: {count} {sites}, all can be served\n", path.display()).as_bytes())
    }

    /// Tells what has happened to a site.
    ///
    /// # Errors
    /// As above.
    pub fn serve_event(&self, event: &Event) -> Result<(), Error> {
        let now = SystemTime::now();
        if self.json {
            let mut object = json!({
                "time": humantime::format_rfc3339_micros(now).to_string(),
                "site": event.site,
            });
            if let (Value::Object(object), Value::Object(more)) =
                (&mut object, describe_json(&event.what))
            {
                object.extend(more);
            }
            return self.line("serve", object);
        }
        let time = humantime::format_rfc3339_millis(now);
        print(format!("{time} {}: {}\n", event.site, describe(&event.what)).as_bytes())
    }
}

impl Report {
    /// # Errors
    /// As above, as all that follow.
    pub fn awake(&self, site: &str, instances: &[String]) -> Result<(), Error> {
        match self.json {
            true => self.line("wake", json!({ "site": site, "instances": instances })),
            false => print(format!("{site} is awake: {}\n", instances.join(", ")).as_bytes()),
        }
    }

    pub fn asleep(&self, site: &str) -> Result<(), Error> {
        match self.json {
            true => self.line("sleep", json!({ "site": site })),
            false => print(format!("{site} sleeps\n").as_bytes()),
        }
    }

    /// Whether what was printed can be printed anew in its place.
    pub fn can_redraw(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// How sites do, with the memory of instances by their names. `before` is how long ago they did how, if that is known.
    pub fn sites(
        &self,
        sites: &[Status],
        memory: &BTreeMap<String, Memory>,
        before: Option<&(Duration, Vec<Status>)>,
        redraw: bool,
    ) -> Result<(), Error> {
        let used = |ids: &[String]| -> Memory {
            ids.iter().filter_map(|id| memory.get(id)).copied().sum()
        };
        if self.json {
            for status in sites {
                let mut object = json!(status);
                object["memory"] = json!(used(&status.serving));
                object["memory_standing_by"] = json!(used(&status.standing_by));
                self.line("site", object)?;
            }
            return Ok(());
        }
        if redraw {
            // The cursor to the first line, and nothing behind it.
            print(b"\x1b[H\x1b[2J")?;
        }
        let headings = [
            "SITE",
            "STATE",
            "OPEN",
            "TAKEN",
            "WAKES",
            "SERVING",
            "PSS",
            "STANDING BY",
            "PSS",
            "LISTENER",
        ];
        let mut rows = vec![headings.map(str::to_owned)];
        for status in sites {
            let size = |ids: &[String]| match ids {
                [] => "-".to_owned(),
                ids => Bytes(used(ids).pss).to_string(),
            };
            let state = match (status.failures, &status.serving[..]) {
                (0, []) => "asleep".to_owned(),
                (_, [_, ..]) => "awake".to_owned(),
                (failures, []) => format!("failed {failures} times"),
            };
            rows.push([
                status.site.clone(),
                state,
                status.open.to_string(),
                status.taken.to_string(),
                status.wakes.to_string(),
                (status.serving.len() + status.leaving.len()).to_string(),
                size(&status.serving),
                status.standing_by.len().to_string(),
                size(&status.standing_by),
                status.listener.to_string(),
            ]);
        }
        table(rows)?;
        behind_proxy(sites, before)
    }
}

/// What the proxy says of the sites that are behind it.
fn behind_proxy(sites: &[Status], before: Option<&(Duration, Vec<Status>)>) -> Result<(), Error> {
    let headings = [
        "BEHIND PROXY",
        "REQ/S",
        "ANSWERED",
        "5XX",
        "REFUSED",
        "IN FLIGHT",
        "WAITING",
    ];
    let mut rows = vec![headings.map(str::to_owned)];
    for status in sites {
        let Some(stats) = &status.proxy else { continue };
        let answered = |stats: &SiteStats| stats.answers.iter().sum::<u64>();
        let rate = before.and_then(|(time, before)| {
            let before = before.iter().find(|other| other.site == status.site)?;
            // A proxy that was started again counts from 0.
            let more = answered(stats).checked_sub(answered(before.proxy.as_ref()?))?;
            Some(format!("{:.1}", more as f64 / time.as_secs_f64()))
        });
        rows.push([
            status.site.clone(),
            rate.unwrap_or_else(|| "-".to_owned()),
            answered(stats).to_string(),
            stats.answers[4].to_string(),
            stats.refused.to_string(),
            stats.in_flight.to_string(),
            stats.waiting.to_string(),
        ]);
    }
    if rows.len() == 1 {
        return Ok(());
    }
    print(b"\n")?;
    table(rows)
}

/// A wake with its phases.
pub(super) fn phases(wake: &Wake) -> String {
    let time = |us: u64| format!("{:>11}", Microseconds(us));
    let mut out = Lines::default();
    let (site, id, instance) = (&wake.site, &wake.id, &wake.instance);
    out.add(&format!(
        "Wake {id} of {site}: {instance} {}, as {}",
        wake.how.describe(),
        wake.cause.describe()
    ));
    out.add("");
    for phase in &wake.phases {
        out.row(&phase.name, &time(phase.length_us));
    }
    out.row("total", &time(wake.took_us));
    out.0
}

fn describe(what: &What) -> String {
    match what {
        What::Listening { listener } => format!("listens on {listener}"),
        What::Adopted { instance } => format!("{instance} goes on"),
        What::Woken(wake) => format!(
            "{} {} after {}: {} ({})",
            wake.instance,
            wake.how.describe(),
            Milliseconds(wake.took_us),
            wake.cause.describe(),
            wake.id,
        ),
        What::Limited {
            cpus,
            cause,
            connections,
        } => {
            let cpus = cpus
                .number()
                .map_or("all".to_owned(), |number| number.to_string());
            let cause = cause.describe();
            format!(
                "each instance may use {cpus} processors for {connections} connections: {cause}"
            )
        }
        What::Ended {
            instance,
            cause,
            lived,
            connections,
        } => format!(
            "{instance} is gone after {:.1} s and {connections} connections: {}",
            lived.as_secs_f64(),
            cause.describe()
        ),
        What::Exited {
            instance,
            status,
            log,
        } => {
            let how = match status {
                Some(status) => format!("has ended by itself: {}", describe_status(*status)),
                None => "has been killed".to_owned(),
            };
            let lines = log.lines().map(|line| format!("\n  {}", printable(line)));
            format!("{instance} {how}{}", lines.collect::<String>())
        }
        What::Failed { error, pause } => format!(
            "cannot be brought up, tried again in {:.1} s: {}",
            pause.as_secs_f64(),
            printable(error)
        ),
        What::Unused { listener } => match listener {
            Some(listener) => format!(
                "nothing here listens on {listener}, which was passed, and nobody answers there: let it have the \
                 name of its site (FileDescriptorName=), or listen where the site does"
            ),
            None => {
                "what was passed does not listen, and is not used (Accept=no, ListenStream=)".into()
            }
        },
        What::Cold { reason } => {
            let reason = reason.to_string();
            format!("starts cold: {}", printable(&reason))
        }
        What::Stale { findings } => {
            let lines = findings.iter().map(|finding| {
                let finding = finding.to_string();
                format!("\n  {}", printable(&finding))
            });
            let lines: String = lines.collect();
            format!("is captured again, as its image may be stale:{lines}")
        }
        What::Recaptured { image, took } => format!(
            "has a new image after {:.1} s: {}",
            took.as_secs_f64(),
            image.chars().take(12).collect::<String>()
        ),
        What::NotRecaptured { error, pause } => format!(
            "could not be captured again, tried at the earliest in {:.0} s: {}",
            pause.as_secs_f64(),
            printable(error)
        ),
        What::Warned { text } => printable(text).into_owned(),
    }
}

fn describe_json(what: &What) -> Value {
    let ms = |duration: &Duration| duration.as_secs_f64() * 1e3;
    match what {
        What::Listening { listener } => json!({ "event": "listening", "listener": listener }),
        What::Adopted { instance } => json!({ "event": "adopted", "instance": instance }),
        What::Woken(wake) => {
            let mut object = json!(wake);
            object["event"] = "woken".into();
            object
        }
        What::Limited {
            cpus,
            cause,
            connections,
        } => json!({
            "event": "limited", "cpus": cpus.number(), "cause": cause, "connections": connections,
        }),
        What::Ended {
            instance,
            cause,
            lived,
            connections,
        } => json!({
            "event": "ended", "instance": instance, "cause": cause, "lived_ms": ms(lived),
            "connections": connections,
        }),
        What::Exited {
            instance,
            status,
            log,
        } => json!({ "event": "exited", "instance": instance, "status": status, "log": log }),
        What::Failed { error, pause } => json!({
            "event": "failed", "error": error, "pause_ms": ms(pause),
        }),
        What::Unused { listener } => json!({ "event": "unused", "listener": listener }),
        What::Cold { reason } => json!({
            "event": "cold", "reason": reason.code(), "description": reason.to_string(),
        }),
        What::Stale { findings } => json!({
            "event": "stale",
            "findings": findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
        }),
        What::Recaptured { image, took } => json!({
            "event": "recaptured", "image": image, "took_ms": ms(took),
        }),
        What::NotRecaptured { error, pause } => json!({
            "event": "not-recaptured", "error": error, "pause_ms": ms(pause),
        }),
        What::Warned { text } => json!({ "event": "warned", "text": text }),
    }
}
