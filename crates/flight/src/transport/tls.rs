use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::certificate;
use super::config::{ClientCertificate, Tls};

/// Largest PEM file that is read. A bundle of all public authorities has 0.25 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why certificates could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key path of the section is not set.
    #[error("flight.tls.{key} is not set")]
    Unset {
        /// The key.
        key: &'static str,
    },
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{} is larger than 4 MiB: not a PEM file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is not PEM, cut short, or holds something else.
    #[error("{} holds no {expected} in PEM, or is cut short", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be inside.
        expected: &'static str,
    },
    /// Certificate and key do not fit together, or rustls does not take them.
    #[error("use certificate {} with key {}", certificate.display(), key.display())]
    Pair {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The authorities for client certificates are of no use.
    #[error("use {} to verify client certificates: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        reason: String,
    },
}

/// The server's certificate and key, exchanged while running when their files change. Clones share them.
#[derive(Clone)]
pub struct TlsReloader(Arc<State>);

struct State {
    tls: Tls,
    current: RwLock<Arc<ServerConfig>>,
    /// The files as they were when last looked at, good or bad.
    seen: Mutex<Option<Files>>,
}

/// What is in the files. Contents rather than times are compared: a renewal may happen within one tick of the clock of
/// the file system, and the files are small.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: zeroize_on_drop::Bytes,
    client_ca: Option<Vec<u8>>,
}

impl TlsReloader {
    /// Reads the files. Blocks for as long as the disk takes.
    pub fn new(tls: &Tls) -> Result<Self, TlsError> {
        let files = read(tls)?;
        let current = RwLock::new(Arc::new(build(tls, &files)?));
        Ok(Self(Arc::new(State { tls: tls.clone(), current, seen: Mutex::new(Some(files)) })))
    }

    /// Reads the files again, for SIGHUP. On an error the certificates in use stay. Blocks for as long as the disk takes.
    pub fn reload(&self) -> Result<(), TlsError> {
        let files = read(&self.0.tls)?;
        self.use_files(files)
    }

    /// As [`reload`](Self::reload), but only when a file differs from what it was at the last look. `Ok(true)` when new
    /// certificates are in use.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let files = read(&self.0.tls)?;
        if self.0.seen.lock().as_ref() == Some(&files) {
            return Ok(false);
        }
        self.use_files(files).map(|()| true)
    }

    fn use_files(&self, files: Files) -> Result<(), TlsError> {
        let built = build(&self.0.tls, &files);
        // Also when they are no good: the same bad files need no second complaint.
        *self.0.seen.lock() = Some(files);
        *self.0.current.write() = Arc::new(built?);
        Ok(())
    }

    /// What a new connection is accepted with.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.current.read()))
    }

    /// Looks at the files now and then until told to stop.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut complaint = String::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.0.tls.reload_interval) => {}
            }
            let reloader = self.clone();
            let result = tokio::task::spawn_blocking(move || reloader.reload_if_changed()).await;
            match result {
                Ok(Ok(true)) => {
                    complaint.clear();
                    info!("new TLS certificates in use");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    let text = error_chain(&error);
                    // A file that stays away is mentioned once.
                    if text != complaint {
                        warn!(error = text, "TLS files changed but cannot be used, the old certificates stay in use");
                        complaint = text;
                    }
                }
                Err(join) => warn!(error = %join, "reloading TLS certificates ended early"),
            }
        }
    }
}

/// Key material that is wiped when dropped.
mod zeroize_on_drop {
    use secrecy::{ExposeSecret, SecretSlice};

    pub(super) struct Bytes(SecretSlice<u8>);

    impl Bytes {
        pub(super) fn new(bytes: Vec<u8>) -> Self {
            Self(bytes.into())
        }

        pub(super) fn get(&self) -> &[u8] {
            self.0.expose_secret()
        }
    }

    impl PartialEq for Bytes {
        fn eq(&self, other: &Self) -> bool {
            self.get() == other.get()
        }
    }

    impl Eq for Bytes {}
}

fn read(tls: &Tls) -> Result<Files, TlsError> {
    let certificate = tls.certificate.as_deref().ok_or(TlsError::Unset { key: "certificate" })?;
    let key = tls.key.as_deref().ok_or(TlsError::Unset { key: "key" })?;
    let client_ca = match tls.client_certificate {
        ClientCertificate::Off => None,
        ClientCertificate::Optional | ClientCertificate::Required => {
            Some(read_file(tls.client_ca.as_deref().ok_or(TlsError::Unset { key: "client_ca" })?)?)
        }
    };
    Ok(Files { certificate: read_file(certificate)?, key: zeroize_on_drop::Bytes::new(read_file(key)?), client_ca })
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

fn build(tls: &Tls, files: &Files) -> Result<ServerConfig, TlsError> {
    let certificate_path = tls.certificate.clone().unwrap_or_default();
    let key_path = tls.key.clone().unwrap_or_default();
    let chain = certificates(&certificate_path, &files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(files.key.get())
        .map_err(|_| TlsError::Pem { path: key_path.clone(), expected: "private key" })?;
    warn_of_loose_key(&key_path);
    if chain.first().is_some_and(certificate::has_ended) {
        warn!(file = %certificate_path.display(), "the TLS certificate has expired, clients will refuse it");
    }
    let pair = |source| TlsError::Pair { certificate: certificate_path.clone(), key: key_path.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let path = tls.client_ca.clone().unwrap_or_default();
            let refused = |reason: String| TlsError::ClientCa { path: path.clone(), reason };
            let mut roots = RootCertStore::empty();
            for authority in certificates(&path, pem)? {
                roots.add(authority).map_err(|e| refused(e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match tls.client_certificate {
                ClientCertificate::Required => verifier,
                ClientCertificate::Off | ClientCertificate::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| refused(e.to_string()))?)
        }
    };
    // Checks that the key is the certificate's.
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = || TlsError::Pem { path: path.to_owned(), expected: "certificate" };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| refused())?;
    if chain.is_empty() { Err(refused()) } else { Ok(chain) }
}

#[cfg(unix)]
fn warn_of_loose_key(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o007 != 0
    {
        warn!(file = %path.display(), "every user of this machine can get at the TLS key; hint: chmod 600");
    }
}

#[cfg(not(unix))]
fn warn_of_loose_key(_path: &Path) {}

/// An error with all its sources, for a log line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
