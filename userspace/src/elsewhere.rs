//! Listeners of a server that are somewhere else for a while, where nobody asks it: during a rehearsal, and
//! while a server is captured again that may run already.

use std::{
    io,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
};

use crate::{
    listener::{Listener, Wanted, canonical},
    target::reachable,
};

/// Places that nobody else has, for listeners. The files of Unix sockets are removed with this.
#[derive(Debug, Default)]
pub struct Elsewhere(Vec<(Listener, Listener)>);

impl Elsewhere {
    /// Finds a place for each listener of a server that was started in `folder`.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn of(listeners: &[Listener], folder: &Path) -> io::Result<Self> {
        let place = |listener: &Listener| Ok((listener.clone(), free(listener, folder)?));
        listeners
            .iter()
            .map(place)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Each listener, and where it is instead.
    pub fn places(&self) -> &[(Listener, Listener)] {
        &self.0
    }

    /// Each place, and the listener that it is of.
    pub fn back(&self) -> Vec<(Listener, Listener)> {
        let places = self.0.iter();
        places
            .map(|(old, new)| (new.clone(), old.clone()))
            .collect()
    }

    /// Where a listener is that is named so; nothing if it is none of these.
    pub fn wanted(&self, wanted: &Wanted) -> Option<Wanted> {
        let (_, new) = self.0.iter().find(|(old, _)| wanted.is(old))?;
        Some(Wanted::Exactly(new.clone()))
    }

    /// Where to connect to in place of an address; nothing if it is of none of these.
    pub fn address(&self, asked: &Listener) -> Option<Listener> {
        let is_asked = |old: &Listener| match (old, asked) {
            (Listener::Tcp { address: old }, Listener::Tcp { address }) => {
                let (old, address) = (canonical(*old), canonical(*address));
                let is_all = old.ip().is_unspecified();
                old.port() == address.port() && (is_all || old.ip() == address.ip())
            }
            (old, asked) => old == asked,
        };
        let (_, new) = self.0.iter().find(|(old, _)| is_asked(old))?;
        Some(new.clone())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let file = |listener: &Listener| -> Option<PathBuf> {
            match listener {
                Listener::Unix { path } => Some(path.clone()),
                Listener::Tcp { .. } => None,
            }
        };
        for path in self.0.iter().filter_map(|(_, new)| file(new)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A place for a listener that nobody else has, and that others do not reach.
fn free(listener: &Listener, folder: &Path) -> io::Result<Listener> {
    Ok(match listener {
        Listener::Tcp { address } => {
            let ip: IpAddr = reachable(address.ip());
            let address = TcpListener::bind((ip, 0))?.local_addr()?;
            Listener::Tcp { address }
        }
        Listener::Unix { path } => {
            let file = listener.file(folder).unwrap_or_else(|| path.clone());
            let mut path = file.into_os_string();
            path.push(format!(".{}", std::process::id()));
            Listener::Unix { path: path.into() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Listener {
        Listener::Tcp {
            address: text.parse().unwrap(),
        }
    }

    #[test]
    fn listeners_are_found_where_they_are_meanwhile() {
        let old = [tcp("0.0.0.0:80"), tcp("127.0.0.1:81")];
        let elsewhere = Elsewhere::of(&old, Path::new("/")).unwrap();
        let new = |at: usize| elsewhere.places()[at].1.clone();
        for (asked, found) in [
            ("127.0.0.1:80", Some(new(0))),
            ("[::ffff:10.0.0.1]:80", Some(new(0))),
            ("127.0.0.1:81", Some(new(1))),
            ("127.0.0.2:81", None),
            ("127.0.0.1:82", None),
        ] {
            assert_eq!(elsewhere.address(&tcp(asked)), found, "{asked}");
        }
        assert_eq!(
            elsewhere.wanted(&Wanted::Port(81)),
            Some(Wanted::Exactly(new(1)))
        );
        assert_eq!(elsewhere.wanted(&Wanted::Port(82)), None);
        assert_ne!(new(0), new(1));
        // Nobody else reaches it.
        assert!(matches!(new(0), Listener::Tcp { address } if address.ip().is_loopback()));
    }
}
