//! Removes images that a recapture in the background has taken the place of: as nobody asked for the new one,
//! nobody would remove the old.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::{
    error::ExitCode,
    store::{Digest, Store},
};

/// How often it is tried.
const INTERVAL: Duration = Duration::from_secs(10);

/// Removes an image as soon as nothing uses it any more, unless it has a name then.
pub async fn remove(store: Store, digest: Digest) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        match store.load(digest.clone()) {
            Ok(image) if image.names.is_empty() => {}
            _ => return,
        }
        // Not on the thread that wakes sites: its files may be large. Once begun it comes to its end, whatever
        // becomes of this process.
        let mut command = Command::new("/proc/self/exe");
        command.arg("--store").arg(store.root());
        command.args(["rm", digest.as_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        let ended = command.status().await;
        if !ended.is_ok_and(|status| status.code() == Some(ExitCode::InUse as i32)) {
            return;
        }
    }
}
