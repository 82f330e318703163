//! Why sites cannot be served.

use std::{io, path::PathBuf};

use super::front::FrontError;
use crate::{
    edit::EditError,
    instance::InstanceError,
    listener::{Listener, Wanted},
    store::StoreError,
    watch::WatchError,
};

/// Why sites cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the site {site} has no image")]
    Image { site: String, source: StoreError },
    #[error("the image of {site} does not listen on {}", .wanted.as_ref().map_or("anything".to_owned(), ToString::to_string))]
    NoListener {
        site: String,
        wanted: Option<Wanted>,
        listeners: Vec<Listener>,
    },
    #[error("the image of {site} listens on {old}, which cannot become {new}")]
    OtherKind {
        site: String,
        old: Listener,
        new: Wanted,
    },
    #[error("the image of {site} listens on {old}, so that it needs a place of its own")]
    NoPlace { site: String, old: Listener },
    #[error("cannot read {}", .path.display())]
    Certificate { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Front(#[from] FrontError),
    #[error("{first} and {second} both listen on {listener}")]
    Clash {
        first: String,
        second: String,
        listener: Listener,
    },
    #[error("cannot listen on {listener} for {site}")]
    Listen {
        site: String,
        listener: Listener,
        source: io::Error,
    },
    #[error("cannot read the image of {site}")]
    Edit { site: String, source: EditError },
    #[error("cannot take the sockets that were passed by LISTEN_FDS")]
    Passed(#[source] io::Error),
    #[error("another gateway serves from the store already (it has locked {})", .0.display())]
    Runs(PathBuf),
    #[error("cannot use the folder {}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot start the keeper of the listening sockets")]
    Keeper(#[source] io::Error),
    #[error("connections cannot be counted")]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
}
