//! What to try when sites cannot be served.

use std::io;

use super::hint::store_hint;
use crate::serve::{ConfigError, GatewayError, admin::AdminError};

/// What to try if a configuration cannot be used.
pub fn config_hint(error: &ConfigError) -> &'static str {
    match error {
        ConfigError::Read { .. } => {
            "name the file with --config FILE; `warmimg serve --help` shows what is in it"
        }
        _ => "`warmimg serve --help` shows what can be in it",
    }
}

pub fn gateway_hint(error: &GatewayError) -> Option<String> {
    Some(match error {
        GatewayError::Image { source, .. } => store_hint(source)?,
        GatewayError::NoListener { listeners, .. } => {
            let listeners: Vec<_> = listeners.iter().map(ToString::to_string).collect();
            match &listeners[..] {
                [] => "only a server that listens can be served".into(),
                listeners => format!("it listens on {}", listeners.join(", ")),
            }
        }
        GatewayError::OtherKind { .. } => {
            "a listener by TCP needs a port or an address, one by a Unix socket a path".into()
        }
        GatewayError::Clash { .. } => "give each site a listener of its own".into(),
        GatewayError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            "end what listens there, or choose another address".into()
        }
        GatewayError::Runs(_) => {
            "end it (SIGTERM), have it read its configuration again (SIGHUP), or use another --store".into()
        }
        _ => return None,
    })
}

pub fn admin_hint(error: &AdminError) -> Option<String> {
    match error {
        AdminError::NotRunning { .. } => Some("start one: warmimg serve".into()),
        AdminError::Unknown { sites, .. } => Some(format!("there are: {}", sites.join(", "))),
        AdminError::NoWake => Some(
            "it knows its last 1,000; `warmimg serve` tells the id of each behind its line".into(),
        ),
        AdminError::Talk { .. } | AdminError::Refused { .. } => None,
    }
}
