//! What happens to sites, as it is told to whoever runs the gateway.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wakes::Wake;
use crate::{cgroup::Cpus, cold::ColdReason, fit::Finding, listener::Listener};

/// Something that happened to a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub site: String,
    pub what: What,
}

/// Why an instance is brought up or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A connection waits.
    Connection,
    /// It was asked for by `warmimg wake` or `warmimg sleep`.
    Asked,
    /// There are more connections than the instances are to have.
    Load,
    /// There are fewer connections than the instances are to have.
    Calm,
    /// It has been without a connection for long enough.
    Idle,
    /// It has lived for long enough.
    MaxLife,
    /// There is a new image.
    Image,
}

/// How an instance came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// From its image.
    Restored,
    /// It was there already, and stood still.
    #[serde(rename = "standby")]
    StoodBy,
    /// Without its image.
    Cold,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The gateway listens for it.
    Listening { listener: Listener },
    /// An instance that ran before is in its place again.
    Adopted { instance: String },
    /// An instance serves from now on.
    Woken(Wake),
    /// The instances that serve may use so much of the processors from now on.
    Limited {
        cpus: Cpus,
        cause: Cause,
        /// How many the site has.
        connections: i64,
    },
    /// An instance was ended.
    Ended {
        instance: String,
        cause: Cause,
        lived: Duration,
        /// How many connections the site has had since the gateway serves it.
        connections: u64,
    },
    /// An instance ended by itself.
    Exited {
        instance: String,
        status: Option<i32>,
        /// The last lines that it wrote.
        log: String,
    },
    /// It cannot be brought up; connections are refused for a while.
    Failed {
        error: String,
        /// Until it is tried again.
        pause: Duration,
    },
    /// A socket of this name was passed that nothing here is to listen on; none if it does not listen.
    Unused { listener: Option<Listener> },
    /// Its image cannot be restored, so that its server is started cold.
    Cold { reason: ColdReason },
    /// Its image may be stale; a new one is made.
    Stale { findings: Vec<Finding> },
    /// There is a new image.
    Recaptured { image: String, took: Duration },
    /// There is no new image, and none is tried for a while.
    NotRecaptured { error: String, pause: Duration },
    /// It goes on without something.
    Warned { text: String },
}
