//! The keys that images are encrypted to, and those that open them, as age(1) has them.
//!
//! Invariant: what is secret is overwritten when it is no longer needed, and is in no message.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use age::{
    DecryptError, Decryptor, EncryptError, Encryptor, Identity, IdentityFile, Recipient, scrypt,
    secrecy::{ExposeSecret as _, SecretString},
    stream::StreamReader,
    x25519,
};

use crate::store::Key;

/// The work factor of a passphrase, as a power of two: that of age(1), about a second.
const WORK: u8 = 18;

/// What is still tried, as age(1) does: 16 times as long, and 4 GiB of memory.
const MOST_WORK: u8 = 22;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the key file {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{0:?} is neither a recipient of age nor a file of such")]
    NoRecipient(String),
    #[error("there is no recipient in {}", .0.display())]
    NoRecipients(PathBuf),
    #[error("there is no passphrase in {}", .0.display())]
    NoPassphrase(PathBuf),
    #[error("cannot encrypt to these recipients")]
    Recipients(#[from] EncryptError),
}

/// What an image is to be encrypted to.
pub struct Recipients {
    all: Vec<Box<dyn Recipient>>,
    pub key: Key,
}

impl Recipients {
    /// By recipients, each a public key or a file of them, or by a file whose first line is a
    /// passphrase; none if there is neither.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn read(
        recipients: &[String],
        passphrase: Option<&Path>,
    ) -> Result<Option<Self>, KeyError> {
        if let Some(path) = passphrase {
            let mut recipient = scrypt::Recipient::new(read_passphrase(path)?);
            recipient.set_work_factor(WORK);
            return Ok(Some(Self {
                all: vec![Box::new(recipient)],
                key: Key::Passphrase,
            }));
        }
        let mut all: Vec<Box<dyn Recipient>> = Vec::new();
        for text in recipients {
            match text.parse::<x25519::Recipient>() {
                Ok(recipient) => all.push(Box::new(recipient)),
                Err(_) => all.extend(read_recipients(text)?),
            }
        }
        Ok((!all.is_empty()).then_some(Self {
            all,
            key: Key::Recipients,
        }))
    }

    /// # Errors
    /// [`KeyError::Recipients`].
    pub fn encryptor(&self) -> Result<Encryptor, KeyError> {
        let all = self.all.iter().map(|recipient| &**recipient);
        Ok(Encryptor::with_recipients(all)?)
    }
}

/// A file of recipients: one a line, and comments.
fn read_recipients(name: &str) -> Result<Vec<Box<dyn Recipient>>, KeyError> {
    let unknown = || KeyError::NoRecipient(name.to_owned());
    let path = PathBuf::from(name);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown()),
        Err(source) => return Err(KeyError::Read { path, source }),
        Ok(text) => text,
    };
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| match line.parse::<x25519::Recipient>() {
        Ok(recipient) => Ok(Box::new(recipient) as Box<dyn Recipient>),
        // It may be a file of secret keys: nothing of it is shown.
        Err(_) => Err(unknown()),
    };
    let found: Vec<_> = lines.map(parse).collect::<Result<_, _>>()?;
    match found.is_empty() {
        true => Err(KeyError::NoRecipients(path)),
        false => Ok(found),
    }
}

fn read_passphrase(path: &Path) -> Result<SecretString, KeyError> {
    let text = fs::read_to_string(path).map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let text = SecretString::from(text);
    match text.expose_secret().lines().next() {
        None | Some("") => Err(KeyError::NoPassphrase(path.to_owned())),
        Some(first) => Ok(SecretString::from(first)),
    }
}

/// What opens encrypted images.
#[derive(Default)]
pub struct Keys {
    identities: Vec<Box<dyn Identity>>,
    passphrase: Option<scrypt::Identity>,
}

/// Why something cannot be decrypted.
#[derive(Debug)]
pub enum Refused {
    /// There is no key of this kind.
    NoKey(Key),
    WrongKey(Key),
    Other(DecryptError),
}

impl From<DecryptError> for Refused {
    fn from(error: DecryptError) -> Self {
        Self::Other(error)
    }
}

impl Keys {
    /// From files of identities, as age-keygen(1) writes them, and a file whose first line is a
    /// passphrase.
    ///
    /// # Errors
    /// [`KeyError::Read`] or [`KeyError::NoPassphrase`].
    pub fn read(identities: &[PathBuf], passphrase: Option<&Path>) -> Result<Self, KeyError> {
        let mut keys = Self::default();
        for path in identities {
            let failed = |source| KeyError::Read {
                path: path.clone(),
                source,
            };
            let file = fs::File::open(path).map_err(failed)?;
            keys.add_identities(BufReader::new(file)).map_err(failed)?;
        }
        if let Some(path) = passphrase {
            let mut identity = scrypt::Identity::new(read_passphrase(path)?);
            identity.set_max_work_factor(MOST_WORK);
            keys.passphrase = Some(identity);
        }
        Ok(keys)
    }

    /// Adds those of a file, as age-keygen(1) writes it.
    ///
    /// # Errors
    /// What reading says, or that it is no such file.
    pub fn add_identities(&mut self, file: impl BufRead) -> io::Result<()> {
        let found = IdentityFile::from_buffer(file)?.into_identities();
        self.identities.extend(found.map_err(io::Error::other)?);
        Ok(())
    }

    /// Decrypts a stream.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn decrypt<R: Read>(&self, from: R) -> Result<(Key, StreamReader<R>), Refused> {
        let decryptor = Decryptor::new(from)?;
        let key = match decryptor.is_scrypt() {
            true => Key::Passphrase,
            false => Key::Recipients,
        };
        let passphrase = self.passphrase.iter().map(|known| known as &dyn Identity);
        let identities = self.identities.iter().map(|known| &**known);
        let fitting: Vec<&dyn Identity> = match key {
            Key::Passphrase => passphrase.collect(),
            Key::Recipients => identities.collect(),
        };
        if fitting.is_empty() {
            return Err(Refused::NoKey(key));
        }
        let decrypted = decryptor.decrypt(fitting.into_iter());
        let decrypted = decrypted.map_err(|error| match error {
            DecryptError::NoMatchingKeys
            | DecryptError::DecryptionFailed
            | DecryptError::KeyDecryptionFailed => Refused::WrongKey(key),
            other => Refused::Other(other),
        })?;
        Ok((key, decrypted))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn sealed(recipients: &Recipients, text: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = recipients
            .encryptor()
            .unwrap()
            .wrap_output(&mut bytes)
            .unwrap();
        writer.write_all(text).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn opened(keys: &Keys, bytes: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut text = Vec::new();
        keys.decrypt(bytes)?.1.read_to_end(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn each_of_the_recipients_opens_it_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let pairs: Vec<_> = (0..3).map(|_| x25519::Identity::generate()).collect();
        let public = |number: usize| pairs[number].to_public().to_string();
        let identity = |number: usize| {
            let secret = pairs[number].to_string();
            let text = format!("# a comment\n{}\n", secret.expose_secret());
            write(&format!("key-{number}"), &text)
        };
        let file = write("recipients", &format!("# team\n\n{}\n", public(1)));
        let named = [public(0), file.display().to_string()];
        let recipients = Recipients::read(&named, None).unwrap().unwrap();
        let bytes = sealed(&recipients, b"memory");
        let keys = |number| Keys::read(&[identity(number)], None).unwrap();
        for number in [0, 1] {
            assert_eq!(opened(&keys(number), &bytes).unwrap(), b"memory");
        }
        let refused = opened(&keys(2), &bytes);
        assert!(matches!(refused, Err(Refused::WrongKey(Key::Recipients))));
        let refused = opened(&Keys::default(), &bytes);
        assert!(matches!(refused, Err(Refused::NoKey(Key::Recipients))));
        // A file of secret keys is none of recipients, and is not shown.
        let secret = identity(0).display().to_string();
        let error = Recipients::read(std::slice::from_ref(&secret), None)
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            format!("{secret:?} is neither a recipient of age nor a file of such")
        );
        assert!(Recipients::read(&[], None).unwrap().is_none());
        let empty = write("empty", "# nobody\n");
        let error = Recipients::read(&[empty.display().to_string()], None).err();
        assert!(matches!(error, Some(KeyError::NoRecipients(_))));
    }

    #[test]
    fn a_passphrase_is_the_first_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        fs::write(&path, "correct horse\nbattery\n").unwrap();
        let recipients = Recipients::read(&[], Some(&path)).unwrap().unwrap();
        let bytes = sealed(&recipients, b"memory");
        fs::write(&path, "correct horse").unwrap();
        let keys = Keys::read(&[], Some(&path)).unwrap();
        assert_eq!(opened(&keys, &bytes).unwrap(), b"memory");
        fs::write(&path, "correct horses").unwrap();
        let keys = Keys::read(&[], Some(&path)).unwrap();
        let refused = opened(&keys, &bytes);
        assert!(matches!(refused, Err(Refused::WrongKey(Key::Passphrase))));
        fs::write(&path, "\n").unwrap();
        let error = Keys::read(&[], Some(&path)).err();
        assert!(matches!(error, Some(KeyError::NoPassphrase(_))));
    }
}
