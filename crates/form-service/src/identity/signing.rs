//! Certificates for keys that are made elsewhere, and stay there.
//!
//! ```text
//!   a machine that joins                     whoever has the CA
//!   key ──▶ SigningRequest ──▶ csr ─────────▶ RequestedKey: the key counts, and that its owner signed; nothing else
//!           Identity ◀── certificate ◀─────── Authority::sign: names and uses are decided here
//! ```

use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{Identity, IdentityError};
use crate::secret::{self, Secret};

/// A request of ours has some 200 bytes.
const MOST_BYTES: usize = 4096;

/// A key, and the request that it be certified.
pub struct SigningRequest {
    key: KeyPair,
    csr: Vec<u8>,
}

/// The key out of a request whose sender has its private half.
#[derive(Debug)]
pub struct RequestedKey(SubjectPublicKeyInfo);

impl SigningRequest {
    /// With a new key.
    pub fn new() -> Result<Self, IdentityError> {
        Self::of(KeyPair::generate()?)
    }

    /// With the key in `dir`; where there is none, a new one is put there first. So who is killed while the answer is
    /// on its way asks with the same key again.
    pub fn open_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join("key.pem");
        if path.exists() {
            let pem = secret::read(&path).map_err(|error| super::fail(&path)(std::io::Error::other(error)))?;
            return Self::of(KeyPair::from_pem(pem.reveal())?);
        }
        let key = KeyPair::generate()?;
        std::fs::create_dir_all(dir).map_err(super::fail(dir))?;
        secret::write(&path, &key.serialize_pem()).map_err(super::fail(&path))?;
        Self::of(key)
    }

    fn of(key: KeyPair) -> Result<Self, IdentityError> {
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// PKCS #10 (RFC 2986), DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The key with the certificate that was made of the request.
    ///
    /// # Errors
    /// Where it is a certificate of another key.
    pub fn identity(&self, ca_pem: &str, cert_pem: &str) -> Result<Identity, IdentityError> {
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| IdentityError::OtherKey)?;
        let (_, cert) = x509_parser::parse_x509_certificate(&cert).map_err(|_| IdentityError::OtherKey)?;
        if cert.public_key().raw != self.key.subject_public_key_info() {
            return Err(IdentityError::OtherKey);
        }
        Ok(Identity {
            ca_pem: ca_pem.to_owned(),
            cert_pem: cert_pem.to_owned(),
            key_pem: Secret::new(self.key.serialize_pem()),
        })
    }
}

impl RequestedKey {
    /// Out of a PKCS #10 request in DER, from anybody.
    ///
    /// # Errors
    /// Where it is none, or its sender does not have the key.
    pub fn of(csr: &[u8]) -> Result<Self, IdentityError> {
        let wrong = |why| move || IdentityError::Request(why);
        if csr.len() > MOST_BYTES {
            return Err(wrong("it is larger than 4096 bytes")());
        }
        let parsed = X509CertificationRequest::from_der(csr).ok().filter(|(rest, _)| rest.is_empty());
        let (_, request) = parsed.ok_or_else(wrong("it is no PKCS #10 request in DER"))?;
        let info = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(info).ok();
        // One kind is enough, and its signatures cost the same whoever made them.
        let key = key.filter(|key| *key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256);
        let key = key.ok_or_else(wrong("its key is not ECDSA on P-256"))?;
        request.verify_signature().map_err(|_| wrong("its signature is not by its key")())?;
        Ok(Self(key))
    }

    /// The key, as it stands in a certificate.
    pub fn der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use rcgen::SanType;
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::{Authority, Peer};

    #[test]
    fn a_machine_that_is_killed_asks_with_the_same_key_again_and_it_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ask = || SigningRequest::open_or_create(&dir.path().join("new")).unwrap();
        let key = |request: &SigningRequest| RequestedKey::of(request.csr()).unwrap().der();
        let (first, again) = (ask(), ask());
        assert_eq!(key(&first), key(&again));
        secret::read(&dir.path().join("new/key.pem")).unwrap();
        assert_ne!(key(&first), key(&SigningRequest::new().unwrap()));
    }

    #[test]
    fn of_a_request_only_the_key_counts() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["form-state".to_owned()]).unwrap();
        let uri = format!("spiffe://{}/service/form-state/one", authority.cluster());
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).unwrap();
        let requested = RequestedKey::of(csr.der()).unwrap();
        let from: IpAddr = "192.0.2.7".parse().unwrap();
        let pem = authority.sign("form-dns", "two", &[from], &requested, SystemTime::now()).unwrap();

        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let peer = Peer::of(&der).unwrap();
        assert_eq!((peer.service.as_str(), peer.node.as_str()), ("form-dns", "two"));
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!cert.is_ca());
        let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let dns = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        });
        assert_eq!(dns.collect::<Vec<_>>(), ["form-dns", "form-dns.two"]);
        assert!(names.contains(&GeneralName::IPAddress(&[192, 0, 2, 7])));
    }

    #[test]
    fn a_certificate_of_another_key_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path()).unwrap();
        let (mine, other) = (SigningRequest::new().unwrap(), SigningRequest::new().unwrap());
        let requested = RequestedKey::of(other.csr()).unwrap();
        let pem = authority.sign("form-dns", "two", &[], &requested, SystemTime::now()).unwrap();
        assert!(matches!(mine.identity("", &pem), Err(IdentityError::OtherKey)));
        assert!(matches!(mine.identity("", "no certificate"), Err(IdentityError::OtherKey)));
        other.identity("", &pem).unwrap();
    }

    #[test]
    fn a_key_of_another_kind_and_one_without_its_private_half_are_refused() {
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let csr = CertificateParams::default().serialize_request(&ed25519).unwrap();
        assert!(RequestedKey::of(csr.der()).unwrap_err().to_string().contains("P-256"));
        let mut csr = SigningRequest::new().unwrap().csr().to_vec();
        *csr.last_mut().unwrap() ^= 1;
        assert!(RequestedKey::of(&csr).is_err());
        assert!(RequestedKey::of(&vec![0x30; MOST_BYTES + 1]).unwrap_err().to_string().contains("larger"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

        /// A byte changed, some cut off, some put in: it is refused, or it is the same key, and nothing panics.
        #[test]
        fn a_request_that_was_changed_certifies_no_other_key(at in 0_usize..400, byte: u8, cut in 0_usize..400, extra: Vec<u8>) {
            let request = SigningRequest::new().unwrap();
            let key = RequestedKey::of(request.csr()).unwrap().der();
            let mut changed = request.csr().to_vec();
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
            for bytes in [changed.clone(), changed[..cut.min(changed.len())].to_vec(), [changed, extra.clone()].concat(), extra.clone()] {
                if let Ok(found) = RequestedKey::of(&bytes) {
                    prop_assert_eq!(found.der(), key.clone());
                }
            }
        }
    }
}
