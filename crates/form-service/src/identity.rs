//! Who is who: the cluster's certificate authority, a service's own certificate, and the name behind a connection.
//!
//! A service is known by a URI in its certificate, `spiffe://CLUSTER/service/SERVICE/NODE`, and by the DNS name `SERVICE`,
//! which its clients ask for: a certificate of one service is no good for posing as another.

mod signing;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use time::OffsetDateTime;

use crate::{file, secret};

pub use self::signing::{RequestedKey, SigningRequest};

const CA_VALID: Duration = Duration::from_secs(3650 * 86_400);
/// How long the certificate of a service is good for.
pub const SERVICE_VALID: Duration = Duration::from_secs(365 * 86_400);
/// Clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("identity file {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("identity file {} holds no certificate or key that can be used", .path.display())]
    Content { path: PathBuf },
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
    #[error("setting up TLS")]
    Tls(#[from] rustls::Error),
    #[error("the signing request cannot be used: {0}")]
    Request(&'static str),
    #[error("the certificate that came back is not for the key that was asked for")]
    OtherKey,
}

/// The cluster's certificate authority: `ca.pem` and `ca.key` in a directory of its own.
pub struct Authority {
    cluster: String,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a service shows, and whom it trusts.
#[derive(Clone)]
pub struct Identity {
    pub ca_pem: String,
    pub cert_pem: String,
    key_pem: secret::Secret,
}

/// The service at the other end of a connection, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub cluster: String,
    pub service: String,
    pub node: String,
    /// When its certificate was made, in whole seconds.
    pub issued: SystemTime,
}

/// What stands in a service's certificate beside its key.
struct Subject<'a> {
    service: &'a str,
    node: &'a str,
    names: &'a [String],
    addresses: &'a [IpAddr],
    issued: SystemTime,
}

impl Authority {
    /// Opens the authority in `dir`, or makes one where there is none.
    pub fn open_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        // The certificate is written last: with it there, the key is there too.
        if !cert_path.exists() {
            std::fs::create_dir_all(dir).map_err(fail(dir))?;
            let key = KeyPair::generate()?;
            let cluster = hex(&key.public_key_raw().iter().rev().take(8).copied().collect::<Vec<_>>());
            let cert = ca_params(&cluster).self_signed(&key)?;
            secret::write(&key_path, &key.serialize_pem()).map_err(fail(&key_path))?;
            file::replace(&cert_path, cert.pem().as_bytes(), 0o644).map_err(fail(&cert_path))?;
        }
        Self::open(dir)
    }

    /// Opens the authority in `dir`.
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let cert_pem = std::fs::read_to_string(&cert_path).map_err(fail(&cert_path))?;
        let key_pem = std::fs::read_to_string(&key_path).map_err(fail(&key_path))?;
        let content = || IdentityError::Content { path: cert_path.clone() };
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| content())?;
        let cluster = common_name(&cert).ok_or_else(content)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, KeyPair::from_pem(&key_pem)?)?;
        Ok(Self { cluster, cert_pem, issuer })
    }

    /// The cluster's name: 16 hex digits that came from the CA's key.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// A certificate for `service` on `node`, good for both ends of a connection, with `names` and `addresses` beside the
    /// service's own name.
    pub fn issue(
        &self,
        service: &str,
        node: &str,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate()?;
        let subject = Subject { service, node, names, addresses, issued: SystemTime::now() };
        let cert = self.params(&subject)?.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            ca_pem: self.cert_pem.clone(),
            cert_pem: cert.pem(),
            key_pem: secret::Secret::new(key.serialize_pem()),
        })
    }

    /// A certificate, PEM, for the key of somebody else: as [`Authority::issue`], as if it was made at `issued`.
    pub fn sign(
        &self,
        service: &str,
        node: &str,
        addresses: &[IpAddr],
        key: &RequestedKey,
        issued: SystemTime,
    ) -> Result<String, IdentityError> {
        let subject = Subject { service, node, names: &[], addresses, issued };
        Ok(self.params(&subject)?.signed_by(key, &self.issuer)?.pem())
    }

    fn params(&self, subject: &Subject<'_>) -> Result<CertificateParams, IdentityError> {
        let Subject { service, node, names, addresses, issued } = subject;
        let mut dns = vec![(*service).to_owned(), format!("{service}.{node}")];
        dns.extend(names.iter().cloned());
        let mut params = CertificateParams::new(dns)?;
        let uri = format!("spiffe://{}/service/{service}/{node}", self.cluster);
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("{service} on {node}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, *issued, SERVICE_VALID);
        Ok(params)
    }
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` (which only its owner may read) from `dir`.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| IdentityError::File { path, source })
        };
        let key = dir.join("key.pem");
        let key_pem =
            secret::read(&key).map_err(|error| IdentityError::File { path: key, source: io::Error::other(error) })?;
        Ok(Self { ca_pem: read("ca.pem")?, cert_pem: read("cert.pem")?, key_pem })
    }

    /// Writes the three files that [`Identity::load`] reads.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let fail = |source| IdentityError::File { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(fail)?;
        secret::write(&dir.join("key.pem"), self.key_pem.reveal()).map_err(fail)?;
        file::replace(&dir.join("cert.pem"), self.cert_pem.as_bytes(), 0o644).map_err(fail)?;
        file::replace(&dir.join("ca.pem"), self.ca_pem.as_bytes(), 0o644).map_err(fail)
    }

    /// Whose certificate it is.
    pub fn name(&self) -> Option<Peer> {
        certificates(&self.cert_pem).first().and_then(Peer::of)
    }

    /// The key, for TLS stacks that read PEM.
    pub fn key_pem(&self) -> &str {
        self.key_pem.reveal()
    }

    /// For a listener: shows this certificate, and takes a client's if it has one. Who shows none is nobody yet; a token
    /// may say who they are.
    pub fn server(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()?))
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let (chain, key) = self.pair()?;
        let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For a client that shows this certificate.
    pub fn client(&self) -> Result<ClientConfig, IdentityError> {
        let (chain, key) = self.pair()?;
        Ok(ClientConfig::builder().with_root_certificates(self.roots()?).with_client_auth_cert(chain, key)?)
    }

    fn roots(&self) -> Result<RootCertStore, IdentityError> {
        let mut roots = RootCertStore::empty();
        for cert in certificates(&self.ca_pem) {
            roots.add(cert)?;
        }
        Ok(roots)
    }

    fn pair(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.reveal().as_bytes())
            .map_err(|_| IdentityError::Content { path: "key.pem".into() })?;
        Ok((certificates(&self.cert_pem), key))
    }
}

impl Peer {
    /// The name in a certificate that the cluster's CA was found to have signed.
    pub fn of(cert: &CertificateDer<'_>) -> Option<Peer> {
        let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
        let from = u64::try_from(cert.validity().not_before.timestamp()).ok()?;
        let issued = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(from))?.checked_add(BACKDATED)?;
        let names = cert.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => Peer::from_uri(uri, issued),
            _ => None,
        })
    }

    fn from_uri(uri: &str, issued: SystemTime) -> Option<Peer> {
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let (cluster, what, service, node) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let whole = what == "service" && parts.next().is_none() && ![cluster, service, node].contains(&"");
        whole.then(|| Peer { cluster: cluster.to_owned(), service: service.to_owned(), node: node.to_owned(), issued })
    }
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().collect()
}

fn ca_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, cluster);
    valid_for(&mut params, SystemTime::now(), CA_VALID);
    params
}

fn valid_for(params: &mut CertificateParams, from: SystemTime, span: Duration) {
    let from = OffsetDateTime::from(from);
    params.not_before = from - BACKDATED;
    params.not_after = from + span;
}

fn fail(path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { path, source }
}

fn common_name(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    cert.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_what_it_issues_carries_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open_or_create(dir.path()).unwrap();
        let again = Authority::open_or_create(dir.path()).unwrap();
        assert_eq!(first.cluster(), again.cluster());
        assert_eq!(first.cluster().len(), 16);

        let identity = again.issue("form-dns", "one", &[], &[]).unwrap();
        let peer = Peer::of(&certificates(&identity.cert_pem)[0]).unwrap();
        let (cluster, issued) = (first.cluster().to_owned(), peer.issued);
        assert_eq!(peer, Peer { cluster, service: "form-dns".into(), node: "one".into(), issued });
        assert!(issued <= SystemTime::now());

        identity.save(&dir.path().join("tls")).unwrap();
        assert_eq!(Identity::load(&dir.path().join("tls")).unwrap().cert_pem, identity.cert_pem);
    }

    #[test]
    fn only_a_whole_name_of_a_service_is_one() {
        assert!(Peer::from_uri("spiffe://c/service/form-dns/n", SystemTime::now()).is_some());
        for bad in [
            "spiffe://c/service/form-dns",
            "spiffe://c/user/a/b",
            "spiffe://c/service//n",
            "https://c/service/a/b",
            "spiffe://c/service/a/b/c",
            "spiffe:///service/a/b",
        ] {
            assert!(Peer::from_uri(bad, SystemTime::now()).is_none(), "{bad}");
        }
    }
}
