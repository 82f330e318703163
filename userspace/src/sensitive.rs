//! What an image may hold that is a secret, or that copies of it should not share.
//!
//! Only names are told of, never values. It is what can be seen from outside: a server may hold more.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::store::{Dependency, Image, Role, StoreError};

/// What kind of thing it is, in a word that stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A variable that looks like a secret.
    SecretEnvironment,
    /// A private key that was read, or is open.
    PrivateKey,
    /// The random state of a library of cryptography.
    RandomState,
    /// A generator of random numbers that is seeded at the start.
    SeededGenerator,
}

impl Code {
    pub fn name(self) -> &'static str {
        match self {
            Self::SecretEnvironment => "secret-environment",
            Self::PrivateKey => "private-key",
            Self::RandomState => "random-state",
            Self::SeededGenerator => "seeded-generator",
        }
    }

    pub fn advice(self) -> &'static str {
        match self {
            Self::SecretEnvironment => {
                "the image and its archives hold the value: guard them as such; after it has been \
                 changed, capture again, or let --after-restore make the server read another"
            }
            Self::PrivateKey => {
                "the image and its archives hold what was read of it: guard them as the key; capture \
                 again when it is renewed, or let --after-restore make the server read it again"
            }
            Self::RandomState => {
                "copies may draw the same numbers from it: let --after-restore make the server add \
                 randomness (RAND_poll of OpenSSL), or start its workers anew"
            }
            Self::SeededGenerator => {
                "copies draw the same numbers: let --after-restore make the server seed it again \
                 (signal:NAME, get:PATH), and take secrets from the system alone"
            }
        }
    }
}

/// Something that an image may hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Sensitive {
    pub code: Code,
    /// The variable, file or program.
    pub about: String,
    /// What more there is to say of it.
    pub note: &'static str,
}

impl Sensitive {
    fn new(code: Code, about: impl Into<String>, note: &'static str) -> Self {
        Self {
            code,
            about: about.into(),
            note,
        }
    }
}

/// What an image may hold.
///
/// # Errors
/// See [`Image::read_files`].
pub fn of(image: &Image) -> Result<BTreeSet<Sensitive>, StoreError> {
    let manifest = &image.manifest;
    let environment = manifest.command.environment.iter();
    let variables = environment.filter_map(|variable| {
        let (name, value) = variable.split_once('=')?;
        let note = secret_variable(name, value)?;
        Some(Sensitive::new(Code::SecretEnvironment, name, note))
    });
    let held = &manifest.dependencies;
    let read = image.read_files()?.map(|read| read.files);
    let read = read.unwrap_or_default();
    // Of images that were made before keys were looked for, the names are all there is.
    let named = held.iter().chain(&read).map(|file| &file.path);
    let named = named.filter(|path| is_key_by_name(path));
    let keys: BTreeSet<&PathBuf> = manifest.private_keys.iter().chain(named).collect();
    let is_open = |path: &Path| {
        let mut held = held.iter();
        held.any(|file| file.path == path && file.role != Role::Mapped)
    };
    let keys = keys.into_iter().map(|path| {
        let note = match is_open(path) {
            true => "still open",
            false => "was read",
        };
        Sensitive::new(Code::PrivateKey, path.display().to_string(), note)
    });
    let mapped = held.iter().filter(|file| file.role == Role::Mapped);
    let mapped: Vec<&Path> = mapped.map(|file| &*file.path).collect();
    let runtimes = runtimes(&mapped);
    Ok(variables.chain(keys).chain(runtimes).collect())
}

/// Why a variable looks like a secret, if it does.
fn secret_variable(name: &str, value: &str) -> Option<&'static str> {
    const PARTS: [&str; 6] = [
        "TOKEN",
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "CREDENTIAL",
    ];
    const WORDS: [&str; 5] = ["KEY", "APIKEY", "PASS", "AUTH", "PRIVATE"];
    if value.is_empty() {
        return None;
    }
    let name = name.to_ascii_uppercase();
    let has_part = PARTS.iter().any(|part| name.contains(part));
    let mut words = name.split(['_', '-', '.']);
    if has_part || words.any(|word| WORDS.contains(&word)) || name.ends_with("KEY") {
        return Some("its name says so");
    }
    has_password(value).then_some("it is a URL with a password")
}

/// Whether a text is a URL with a user and a password.
fn has_password(value: &str) -> bool {
    let authority = value.split_once("://").map(|(_, rest)| rest);
    let authority = authority.and_then(|rest| rest.split(['/', '?', '#']).next());
    let user = authority.and_then(|authority| authority.rsplit_once('@'));
    user.and_then(|(user, _)| user.split_once(':'))
        .is_some_and(|(_, password)| !password.is_empty())
}

/// What of libraries and programs is seeded before the freeze.
fn runtimes(mapped: &[&Path]) -> Vec<Sensitive> {
    let mut found: Vec<Sensitive> = mapped.iter().flat_map(|path| runtime(path)).collect();
    let is_library = |found: &Sensitive| found.about.starts_with("libcrypto");
    if found.iter().any(is_library) {
        // Then it is not in the program as well.
        found.retain(|found| found.code != Code::RandomState || is_library(found));
    }
    // A program and its library have one generator.
    let mut told = BTreeSet::new();
    found.retain(|found| found.code != Code::SeededGenerator || told.insert(found.note));
    found
}

fn runtime(path: &Path) -> Vec<Sensitive> {
    const OPENSSL: &str = "OpenSSL seeds itself again after a fork, and after a time (an hour at the \
                           latest), but not by a restore";
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let generator = |note| vec![Sensitive::new(Code::SeededGenerator, &*name, note)];
    if is(&["libcrypto.so", "libcrypto-"]) {
        return vec![Sensitive::new(Code::RandomState, &*name, OPENSSL)];
    }
    if is(&["libpython"]) || is_program(&name, "python") {
        return generator("Python: random, and the hashes of texts; random.seed() seeds it again");
    }
    if name == "node" || name == "nodejs" || is(&["libnode.so"]) {
        let mut found = generator("Node.js: Math.random(), which cannot be seeded again");
        found.push(Sensitive::new(Code::RandomState, &*name, OPENSSL));
        return found;
    }
    if is(&["libruby"]) || is_program(&name, "ruby") {
        return generator("Ruby: rand and Random; Random.srand seeds it again");
    }
    let php = ["libphp", "php-fpm", "php-cgi", "php"];
    if php
        .iter()
        .any(|program| is_program(name.trim_end_matches(".so"), program))
    {
        return match version(&name) {
            // It seeds them at each request.
            Some(version) if version >= (8, 2) => vec![],
            _ => generator("PHP before 8.2: mt_rand() and rand(); mt_srand() seeds them again"),
        };
    }
    if name == "libjvm.so" {
        return generator(
            "Java: Random, ThreadLocalRandom, Math.random(), and SecureRandom objects that exist; \
             make new ones",
        );
    }
    if is(&["libperl.so"]) || is_program(&name, "perl") {
        return generator("Perl: rand, once it was used; srand seeds it again");
    }
    vec![]
}

/// Whether a name is a program's, with a version or without.
fn is_program(name: &str, program: &str) -> bool {
    let version = name.strip_prefix(program);
    version.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// The version at the end of a name, as in `libphp8.2.so`.
fn version(name: &str) -> Option<(u32, u32)> {
    let name = name.trim_end_matches(".so");
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let (major, minor) = digits.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The private keys among files that were read or are held.
pub fn private_keys(held: &[Dependency], read: &[Dependency]) -> Vec<PathBuf> {
    let files = held.iter().chain(read);
    let files = files.filter(|file| matches!(file.role, Role::Read | Role::Open | Role::Written));
    let keys: BTreeSet<&PathBuf> = files
        .filter(|file| is_key_by_name(&file.path) || is_key_by_content(file))
        .map(|file| &file.path)
        .collect();
    keys.into_iter().cloned().collect()
}

fn is_key_by_name(path: &Path) -> bool {
    const ENDINGS: [&str; 5] = ["key", "p12", "pfx", "jks", "keystore"];
    const NAMES: [&str; 4] = ["id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"];
    let has = |part: Option<&std::ffi::OsStr>, list: &[&str]| {
        let part = part.and_then(|part| part.to_str());
        part.is_some_and(|part| list.contains(&part))
    };
    has(path.extension(), &ENDINGS) || has(path.file_name(), &NAMES)
}

/// Whether a file has a private key in PEM (RFC 7468). Programs, which are many, are not looked into.
fn is_key_by_content(file: &Dependency) -> bool {
    /// More than any chain of certificates with a key.
    const LARGEST: u64 = 1 << 16;
    const PROGRAMS: [&str; 12] = [
        "py", "pyc", "js", "mjs", "cjs", "ts", "map", "rb", "php", "pm", "class", "so",
    ];
    let ending = file.path.extension().and_then(|ending| ending.to_str());
    if file.bytes > LARGEST || ending.is_some_and(|ending| PROGRAMS.contains(&ending)) {
        return false;
    }
    let mut bytes = Vec::new();
    let opened = File::open(&file.path);
    let read = opened.and_then(|file| file.take(LARGEST).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    read.is_ok()
        && text.lines().any(|line| {
            let label = line.split_once("-----BEGIN ").map(|(_, label)| label);
            label.is_some_and(|label| label.contains("PRIVATE KEY-----"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_secrets_by_name_or_by_the_password_in_a_url() {
        for name in [
            "API_TOKEN",
            "github_token",
            "DB_PASSWORD",
            "AWS_SECRET_ACCESS_KEY",
            "APIKEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "SIGNING_KEY",
            "DB_PASS",
        ] {
            assert!(secret_variable(name, "x").is_some(), "{name}");
        }
        for (name, value) in [
            ("PATH", "/bin"),
            ("PWD", "/srv"),
            ("KEYBOARD", "us"),
            ("API_TOKEN", ""),
            ("DATABASE_URL", "postgres://shop@db/shop"),
            ("SITE", "http://example.org/a:b@c"),
        ] {
            assert_eq!(secret_variable(name, value), None, "{name}");
        }
        let url = "postgres://shop:hunter2@db:5432/shop";
        assert!(secret_variable("DATABASE_URL", url).is_some());
    }

    #[test]
    fn runtimes_are_known_by_their_files() {
        let codes = |path: &str| -> Vec<Code> {
            let found = runtimes(&[Path::new(path)]);
            found.iter().map(|found| found.code).collect()
        };
        for path in [
            "/usr/bin/python3.11",
            "/usr/bin/ruby3.1",
            "/usr/sbin/php-fpm8.1",
            "/usr/lib/apache2/modules/libphp7.4.so",
            "/opt/php/sbin/php-fpm",
            "/usr/bin/perl",
            "/usr/lib/jvm/java-17/lib/server/libjvm.so",
            "/usr/lib/libruby-3.1.so.3.1",
        ] {
            assert_eq!(codes(path), [Code::SeededGenerator], "{path}");
        }
        assert_eq!(codes("/usr/lib/libcrypto.so.3"), [Code::RandomState]);
        // Once, if it is a library.
        assert_eq!(codes("/usr/bin/node").len(), 2);
        let both = ["/usr/bin/node", "/usr/lib/libcrypto.so.3"].map(Path::new);
        assert_eq!(runtimes(&both).len(), 2);
        let ruby = ["/usr/bin/ruby3.1", "/usr/lib/libruby-3.1.so.3.1"].map(Path::new);
        assert_eq!(runtimes(&ruby).len(), 1);
        // These seed themselves at each request.
        for path in [
            "/usr/sbin/php-fpm8.2",
            "/usr/bin/php8.3",
            "/lib/libphp8.2.so",
        ] {
            assert_eq!(codes(path), [], "{path}");
        }
        for path in ["/usr/bin/pythonic", "/usr/sbin/nginx", "/lib/libc.so.6"] {
            assert_eq!(codes(path), [], "{path}");
        }
    }

    #[test]
    fn private_keys_are_known_by_content_and_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let begin = "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\n";
        let chain = format!("-----BEGIN CERTIFICATE-----\nMII\n{begin}");
        let json = r#"{"private_key": "-----BEGIN PRIVATE KEY-----\nMII"}"#;
        let mut keys = vec![
            file("chain.pem", &chain),
            file("account.json", json),
            file("server.key", ""),
            file("id_ed25519", ""),
        ];
        keys.sort();
        let others = [
            file("ca.pem", "-----BEGIN CERTIFICATE-----\nMII\n"),
            file("id_ed25519.pub", "ssh-ed25519 AAAA"),
            file("notes", "a PRIVATE KEY----- is told of"),
            file("code.py", begin),
        ];
        let seen = keys.iter().chain(&others);
        let seen = seen.map(|path| crate::fit::Seen::now(path.clone(), Role::Read));
        let read = crate::fit::identify(seen.collect());
        assert_eq!(read.len(), 8);
        assert_eq!(private_keys(&[], &read), keys);
    }
}
