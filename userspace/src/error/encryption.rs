//! What to try when an image cannot be encrypted or opened.

use super::hint::{archive_hint, store_hint};
use crate::{
    encryption::{EncryptionError, KeyError},
    store::Key,
};

/// If there is not enough memory for one.
pub const MEMORY: &str = "close images with `warmimg close`, end what uses much memory, or use a host with more: all \
                      of an encrypted image is in memory while it is made or open, in a tmpfs of at most half \
                      of it";

/// The option that names such a key.
pub fn key_option(key: Key) -> &'static str {
    match key {
        Key::Recipients => "--identity FILE",
        Key::Passphrase => "--passphrase-file FILE",
    }
}

/// What to try if an image cannot be encrypted or opened.
pub fn encryption_hint(error: &EncryptionError) -> Option<String> {
    Some(match error {
        EncryptionError::Key(KeyError::NoRecipient(_) | KeyError::NoRecipients(_)) => {
            "a recipient is what `age-keygen` prints as the public key: age1…".into()
        }
        EncryptionError::Key(KeyError::Read { .. }) => {
            "an identity is a file that `age-keygen -o FILE` writes, a passphrase the first line of one"
                .into()
        }
        EncryptionError::Key(_) => return None,
        EncryptionError::NoKey { key, .. } => {
            let variable = match key {
                Key::Recipients => "WARMIMG_IDENTITY",
                Key::Passphrase => "WARMIMG_PASSPHRASE_FILE",
            };
            format!("give it with {}, or name the file by {variable}", key_option(*key))
        }
        EncryptionError::WrongKey { key, .. } => {
            format!("give the right one with {}", key_option(*key))
        }
        EncryptionError::Damaged { .. } | EncryptionError::Other { .. } => {
            "nothing of it was restored or stored: capture it again, or take it from a copy that is whole"
                .into()
        }
        EncryptionError::Undecryptable { .. } => {
            "it may be of a newer version of age: decrypt it with age(1)".into()
        }
        EncryptionError::NoRoom { .. } => MEMORY.into(),
        EncryptionError::Busy => "try again in a moment".into(),
        EncryptionError::Archive(error) => archive_hint(error)?,
        EncryptionError::Store(error) => store_hint(error)?,
    })
}
