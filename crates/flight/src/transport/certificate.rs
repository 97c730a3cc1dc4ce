use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Names taken from one certificate. More would only be there to confuse.
const NAMES_MAX: usize = 64;

/// The names that a verified client certificate can be known by: DNS names, URIs and e-mail addresses of its subject
/// alternative names, then its common names. Without duplicates; empty for a certificate that cannot be read.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative =
        alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some(*name),
            _ => None,
        });
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = Vec::new();
    for name in alternative.chain(common).filter(|name| !name.is_empty()) {
        if names.len() < NAMES_MAX && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Whether the certificate is past its end. One that cannot be read is not: rustls has the word on that.
pub(crate) fn has_ended(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.validity().not_after < x509_parser::time::ASN1Time::now())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    #[test]
    fn alternative_names_come_first_then_the_common_name() {
        let mut params = CertificateParams::new(["worker.example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://x/y".try_into().unwrap()));
        params.subject_alt_names.push(SanType::Rfc822Name("w@example".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.distinguished_name.push(DnType::CommonName, "worker");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let names = names(certificate.der());
        assert_eq!(names, ["worker.example", "spiffe://x/y", "w@example", "worker"]);
    }

    #[test]
    fn garbage_has_no_names() {
        assert!(names(&CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff])).is_empty());
        assert!(names(&CertificateDer::from(Vec::new())).is_empty());
    }

    #[test]
    fn the_end_is_seen() {
        let mut params = CertificateParams::new(["x".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        assert!(!has_ended(params.clone().self_signed(&key).unwrap().der()));
        params.not_after = date_time_ymd(2020, 1, 1);
        assert!(has_ended(params.self_signed(&key).unwrap().der()));
    }
}
