//! A private certificate authority, like those of self-hosted and managed Redis, and one server
//! certificate signed by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redis::{Client, TlsCertificates};
use tempfile::TempDir;

/// The files of an authority, and of a server at 127.0.0.1 or `localhost`; clones share them.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: Arc<TempDir>,
}

impl Certificates {
    /// Creates new ones.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn make() -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        // A certificate whose subject equals its issuer would count as self-signed.
        authority.distinguished_name.push(DnType::CommonName, "an authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let made = Self { folder: Arc::new(TempDir::with_prefix("ethhook-tls-")?) };
        std::fs::write(made.authority(), authority.pem())?;
        std::fs::write(made.certificate(), certificate.pem())?;
        std::fs::write(made.key(), key.serialize_pem())?;
        Ok(made)
    }

    /// The PEM file that clients trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The server's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.file("server.pem")
    }

    /// The server's key, PEM.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.file("server.key")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }

    /// A client for a `rediss://` URL that trusts only this authority.
    ///
    /// # Errors
    /// If the URL is invalid.
    pub fn client(&self, url: &str) -> Result<Client> {
        // The provider is process-wide; it may already be installed.
        drop(rustls::crypto::ring::default_provider().install_default());
        let root_cert = Some(std::fs::read(self.authority())?);
        Ok(Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })?)
    }
}
