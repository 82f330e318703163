//! What the instances of a site may use.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::Site;
use crate::cgroup::{Cpus, Limits, Memory};

impl Site {
    /// What an instance may use, if that is limited, as usual or when it is busy.
    pub fn limits(&self, is_busy: bool) -> Option<Limits> {
        let cpus = match is_busy {
            true => self.busy_cpus,
            false => self.cpus,
        };
        let limits = Limits {
            cpus,
            memory: self.memory_limit,
        };
        (limits != Limits::default()).then_some(limits)
    }

    /// What does not make sense about it.
    pub(super) fn complaint(&self) -> Option<&'static str> {
        if self.max == 0 {
            return Some("may have no instance: max is 0");
        }
        let (cpus, connections) = (self.cpus, self.connections);
        (self.busy_cpus.is_some() && (cpus.is_none() || connections.is_none()))
            .then_some("has `busy-cpus`, which needs `cpus` and `connections`")
    }
}

/// Reads a limit: a number of processors.
pub(super) fn cpus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cpus>, D::Error> {
    parsed(from)
}

/// Reads a limit: a size.
pub(super) fn memory<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Memory>, D::Error> {
    parsed(from)
}

/// Reads what people may write with or without quotes.
fn parsed<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Integer(u64),
        Number(f64),
        Text(String),
    }
    let text = match Value::deserialize(deserializer)? {
        Value::Integer(number) => number.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text,
    };
    let parsed = text.parse().map(Some);
    parsed.map_err(|error| D::Error::custom(format!("{text:?}: {error}")))
}
