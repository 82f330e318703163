//! The arguments that name keys: to encrypt images, and to open them.

use std::path::PathBuf;

use clap::Args;

use crate::encryption::{KeyError, Keys as Read, Recipients};

// A passphrase, which both encrypts and opens.
#[derive(Clone, Debug, Default, Args)]
pub struct Passphrase {
    /// The passphrase of an encrypted image: the first line of this file
    #[arg(long, env = "WARMIMG_PASSPHRASE_FILE", value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

// What an image is to be encrypted to.
#[derive(Debug, Args)]
pub struct Encrypt {
    /// Encrypt the image, so that it is open in memory only: to a public key of age(1), as age1…,
    /// or to all in a file; can be given several times
    #[arg(long, env = "WARMIMG_ENCRYPT_TO", value_name = "RECIPIENT")]
    #[arg(value_delimiter = ',', conflicts_with = "passphrase_file")]
    pub encrypt_to: Vec<String>,
    #[command(flatten)]
    pub passphrase: Passphrase,
}

impl Encrypt {
    /// What is to be encrypted to, if the image is to be encrypted.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(&self) -> Result<Option<Recipients>, KeyError> {
        Recipients::read(&self.encrypt_to, self.passphrase.passphrase_file.as_deref())
    }
}

// Secret keys.
#[derive(Clone, Debug, Default, Args)]
pub struct Identities {
    /// Open an encrypted image with the keys in this file, as age-keygen(1) writes it; can be given
    /// several times
    #[arg(long, env = "WARMIMG_IDENTITY", value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

impl Identities {
    /// These keys, and a passphrase.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(&self, passphrase: &Passphrase) -> Result<Read, KeyError> {
        Read::read(&self.identity, passphrase.passphrase_file.as_deref())
    }
}

// What opens an encrypted image that is not open yet.
#[derive(Clone, Debug, Default, Args)]
pub struct Keys {
    #[command(flatten)]
    pub identities: Identities,
    #[command(flatten)]
    pub passphrase: Passphrase,
}

impl Keys {
    pub fn are_given(&self) -> bool {
        !self.identities.identity.is_empty() || self.passphrase.passphrase_file.is_some()
    }

    /// # Errors
    /// See [`KeyError`].
    pub fn read(&self) -> Result<Read, KeyError> {
        self.identities.read(&self.passphrase)
    }
}
