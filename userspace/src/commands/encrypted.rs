//! `warmimg open` and `close`, and what other commands do with encrypted images.

use std::collections::BTreeSet;

use super::{images::claim, open_store};
use crate::{
    cli,
    encryption::{self, EncryptionError, KeyError, Keys, Recipients},
    error::{Error, ExitCode},
    report::Report,
    store::{Digest, Image, MemoryStore, Store, StoreError, Stored, TemporaryStore},
    working_set::Touched,
};

pub fn open(global: &cli::Global, arguments: &cli::Open, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let wanted = arguments.image.as_deref();
    let image = find(&store, wanted, || arguments.keys.read(), report)?;
    if store.encrypted(&image.digest)?.is_none() {
        return Err(Error::NotEncrypted(image.label().to_owned()));
    }
    report.opened(&image)?;
    Ok(0)
}

pub fn close(global: &cli::Global, arguments: &cli::Close, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let digests: BTreeSet<Digest> = match arguments.all {
        false => {
            let wanted = arguments.images.iter();
            wanted
                .map(|wanted| store.locate(wanted))
                .collect::<Result<_, _>>()?
        }
        true => {
            let is_open = |image: &Stored| match image {
                Stored::Encrypted(encrypted) => encrypted.opened.is_some(),
                Stored::Plain(_) => false,
            };
            let open = store.list()?.into_iter().filter(is_open);
            open.map(|image| image.digest().clone()).collect()
        }
    };
    for digest in digests {
        let Stored::Encrypted(encrypted) = store.stored(&digest)? else {
            return Err(Error::NotEncrypted(digest.short().to_owned()));
        };
        let claimed = claim(&store, &digest)?;
        store.close(&digest)?;
        drop(claimed);
        report.closed(&encrypted)?;
    }
    Ok(0)
}

/// Finds an image; one that is encrypted is opened, if it is not open yet.
pub fn find(
    store: &Store,
    wanted: Option<&str>,
    keys: impl FnOnce() -> Result<Keys, KeyError>,
    report: &Report,
) -> Result<Image, Error> {
    match store.find(wanted) {
        Err(StoreError::Closed { digest, .. }) => {
            let line = report.transfer("opening");
            let mut progress = |total, done| line.show_transfer(total, done);
            let opened = encryption::open(store, &digest, keys, &mut progress);
            line.clear();
            Ok(opened?)
        }
        found => Ok(found?),
    }
}

/// Where an image is made: in the store, or, if it is to be encrypted, in memory.
pub struct Workshop<'a> {
    store: &'a Store,
    inside: Option<Inside>,
}

/// In this order these end.
struct Inside {
    recipients: Recipients,
    store: TemporaryStore,
    memory: MemoryStore,
}

impl<'a> Workshop<'a> {
    pub fn new(store: &'a Store, arguments: &cli::Encrypt) -> Result<Self, EncryptionError> {
        let inside = match arguments.read()? {
            None => None,
            Some(recipients) => {
                let memory = store.memory()?;
                Some(Inside {
                    recipients,
                    store: memory.temporary()?,
                    memory,
                })
            }
        };
        Ok(Self { store, inside })
    }

    pub fn encrypts(&self) -> bool {
        self.inside.is_some()
    }

    /// The store to make the image in.
    pub fn store(&self) -> &Store {
        match &self.inside {
            Some(inside) => &inside.store,
            None => self.store,
        }
    }

    /// Puts an image that was made there into the store.
    pub fn finish(&self, image: &Image, name: &str, report: &Report) -> Result<(), Error> {
        let Some(inside) = &self.inside else {
            return Ok(());
        };
        let line = report.transfer("encrypting");
        let total = image.manifest.image_bytes();
        let mut progress = |done| line.show_transfer(total, done);
        let recipients = &inside.recipients;
        let encrypted = encryption::encrypt(self.store, image, recipients, name, &mut progress);
        line.clear();
        Ok(encrypted?)
    }

    /// Puts an image in the place of another of the store that differs only by what is known of its
    /// working set. One that is encrypted stays open.
    pub fn replace(
        &self,
        image: &Image,
        touched: &Touched,
        report: &Report,
    ) -> Result<Image, Error> {
        let Some(inside) = &self.inside else {
            return Ok(self.store.replace(image, touched)?);
        };
        let new = inside.store.with_working_set(image, touched)?;
        if new.digest != image.digest {
            self.finish(&new, new.label(), report)?;
            inside.memory.take(&new)?;
            self.store.supersede(image, &new.digest)?;
        }
        Ok(self.store.load(new.digest)?)
    }

    /// Says of a failure for lack of space where that is.
    pub fn explain(&self, error: impl Into<Error>) -> Error {
        let error = error.into();
        match self.inside.is_some() && error.exit_code() == ExitCode::DiskFull {
            true => Error::MemoryFull(Box::new(error)),
            false => error,
        }
    }
}
