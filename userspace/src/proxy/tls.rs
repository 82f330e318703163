//! TLS with clients: by rustls, with the certificate that the name in the ClientHello chooses.

use std::{collections::HashMap, sync::Arc};

use tokio_rustls::rustls::{
    self, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::{ClientHello, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
};
use webpki::EndEntityCert;

use super::plan::Certificate;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("a certificate chain is no PEM: {0}")]
    Chain(#[source] pem::Error),
    #[error("a certificate chain is empty")]
    Empty,
    #[error("a key is no PEM: {0}")]
    Key(#[source] pem::Error),
    #[error("a certificate is malformed: {0}")]
    Certificate(webpki::Error),
    #[error("a certificate or its key cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

/// What is the same for all listeners, and outlives a reload: sessions go on after it.
#[derive(Clone, Debug)]
pub struct Tickets(Arc<dyn ProducesTickets>);

impl Tickets {
    /// Makes keys for tickets, which change by and by.
    ///
    /// # Errors
    /// If there are no random numbers.
    pub fn new() -> Result<Self, TlsError> {
        ring::Ticketer::new().map(Self).map_err(TlsError::Unusable)
    }
}

/// The certificates of a listener, ready to be used.
#[derive(Clone, Debug)]
pub struct Tls {
    pub config: Arc<ServerConfig>,
    names: Arc<Names>,
}

impl Tls {
    /// Reads the certificates and keys.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(certificates: &[Certificate], tickets: &Tickets) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut names = Names::default();
        for certificate in certificates {
            names.add(certificate, &provider)?;
        }
        let names = Arc::new(names);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?;
        let mut config = config
            .with_no_client_auth()
            .with_cert_resolver(names.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = tickets.0.clone();
        Ok(Self {
            config: Arc::new(config),
            names,
        })
    }

    /// The place of the certificate that is for a name, or of the first.
    pub fn place(&self, name: &str) -> usize {
        self.names.place(name)
    }
}

/// Certificates by the names that they are for.
#[derive(Debug, Default)]
struct Names {
    keys: Vec<Arc<CertifiedKey>>,
    exact: HashMap<String, usize>,
    /// By the name one label above which they are.
    below: HashMap<String, usize>,
}

impl Names {
    fn add(
        &mut self,
        certificate: &Certificate,
        provider: &CryptoProvider,
    ) -> Result<(), TlsError> {
        let chain = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes());
        let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(TlsError::Chain)?;
        let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes());
        let key = key.map_err(TlsError::Key)?;
        let first = chain.first().ok_or(TlsError::Empty)?;
        let place = self.keys.len();
        let leaf = EndEntityCert::try_from(first).map_err(TlsError::Certificate)?;
        for name in leaf.valid_dns_names() {
            let name = name.to_ascii_lowercase();
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.below, parent.to_owned()),
                None => (&mut self.exact, name),
            };
            map.entry(name).or_insert(place);
        }
        let key = CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Unusable)?;
        self.keys.push(Arc::new(key));
        Ok(())
    }

    fn place(&self, name: &str) -> usize {
        let below = || self.below.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(below).copied().unwrap_or(0)
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        self.keys.get(self.place(&name)).cloned()
    }
}
