//! What `warmimg serve` tells: a line for each thing that happens to a site.

use std::{path::Path, time::SystemTime};

use serde_json::{Value, json};

use super::{Milliseconds, Report, print, printable};
use crate::{
    error::Error,
    instance::describe_status,
    serve::{Cause, Config, Event, What},
};

impl Cause {
    fn describe(self) -> &'static str {
        match self {
            Self::Connection => "a connection waits",
            Self::Asked => "asked to",
            Self::Load => "more connections than it is to have",
            Self::Idle => "no connection for long enough",
            Self::MaxLife => "it has lived for long enough",
            Self::Removed => "it is served no more",
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
            if let (Value::Object(object), Value::Object(more)) = (&mut object, describe_json(&event.what)) {
                object.extend(more);
            }
            return self.line("serve", object);
        }
        let time = humantime::format_rfc3339_millis(now);
        print(format!("{time} {}: {}\n", event.site, describe(&event.what)).as_bytes())
    }
}

fn describe(what: &What) -> String {
    match what {
        What::Listening { listener } => format!("listens on {listener}"),
        What::Adopted { instance } => format!("{instance} goes on"),
        What::Woken {
            instance,
            cause,
            took,
        } => format!(
            "{instance} is up after {}: {}",
            Milliseconds(took.as_micros() as u64),
            cause.describe()
        ),
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
        What::Exited { instance, status } => match status {
            Some(status) => format!("{instance} has ended by itself: {}", describe_status(*status)),
            None => format!("{instance} has been killed"),
        },
        What::Failed {
            error,
            refused,
            pause,
        } => format!(
            "cannot be brought up, tried again in {:.1} s ({refused} connections refused): {}",
            pause.as_secs_f64(),
            printable(error)
        ),
        What::Warned { text } => printable(text).into_owned(),
    }
}

fn describe_json(what: &What) -> Value {
    let ms = |duration: &std::time::Duration| duration.as_secs_f64() * 1e3;
    match what {
        What::Listening { listener } => json!({ "event": "listening", "listener": listener }),
        What::Adopted { instance } => json!({ "event": "adopted", "instance": instance }),
        What::Woken {
            instance,
            cause,
            took,
        } => json!({
            "event": "woken", "instance": instance, "cause": cause, "took_ms": ms(took),
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
        What::Exited { instance, status } => {
            json!({ "event": "exited", "instance": instance, "status": status })
        }
        What::Failed {
            error,
            refused,
            pause,
        } => json!({
            "event": "failed", "error": error, "refused": refused, "pause_ms": ms(pause),
        }),
        What::Warned { text } => json!({ "event": "warned", "text": text }),
    }
}
