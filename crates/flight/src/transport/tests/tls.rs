//! Certificates: shown, checked, exchanged while running.
use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{ClientCertificate, TlsError};
use super::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

struct Pair {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, pem }
    }

    fn pair(&self, dns: &str, common: &str) -> Pair {
        let mut params = CertificateParams::new([dns.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { certificate: certificate.der().clone(), certificate_pem: certificate.pem(), key }
    }
}

/// An authority, a server's pair signed by it, and the files that a server reads.
struct Fixture {
    authority: Authority,
    folder: TempDir,
    tls: Tls,
}

fn fixture(client_certificate: ClientCertificate) -> Fixture {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(folder.path().join(name));
    let tls = Tls {
        certificate: file("server.pem"),
        key: file("server.key"),
        client_ca: (client_certificate != ClientCertificate::Off).then(|| file("ca.pem")).flatten(),
        client_certificate,
        reload_interval: Duration::from_millis(100),
    };
    assert_eq!(tls.problems(), []);
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    write(folder.path(), &authority.pair("updraft.test", "first"));
    Fixture { authority, folder, tls }
}

fn write(folder: &Path, pair: &Pair) {
    fs::write(folder.join("server.pem"), &pair.certificate_pem).unwrap();
    fs::write(folder.join("server.key"), pair.key.serialize_pem()).unwrap();
}

fn client_config(authority: &Authority, shown: Option<&Pair>, tls13_only: bool) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = if tls13_only { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS12] };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::try_from(pair.key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![pair.certificate.clone()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn connect(server: &Server, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("updraft.test").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, server.tcp().await).await
}

/// What a client with this certificate gets: the names that the server saw, or a refusal. With TLS 1.3 a client learns
/// of a refusal only when it reads.
async fn names_seen(server: &Server, config: ClientConfig) -> Result<String, String> {
    let io = connect(server, config).await.map_err(|e| e.to_string())?;
    let (requests, connection) = h2::client::handshake(io).await.map_err(|e| e.to_string())?;
    let mut client = Client { requests, connection: tokio::spawn(connection) };
    client.get("/names").await.map(|(_, names)| names).map_err(|e| e.to_string())
}

/// The common name of the certificate that the server shows to a new connection.
async fn shown(server: &Server, fixture: &Fixture) -> String {
    let io = connect(server, client_config(&fixture.authority, None, true)).await.unwrap();
    let certificate = io.get_ref().1.peer_certificates().unwrap()[0].clone();
    super::super::certificate::names(&certificate).pop().unwrap()
}

#[tokio::test]
async fn both_versions_of_tls_work_and_agree_on_http2() {
    let fixture = fixture(ClientCertificate::Off);
    let server = start(Limits::default(), Some(&fixture.tls));
    for tls13_only in [true, false] {
        let config = client_config(&fixture.authority, None, tls13_only);
        let io = connect(&server, config.clone()).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        assert_eq!(names_seen(&server, config).await, Ok(String::new()));
    }
    let stranger = Authority::new();
    assert!(connect(&server, client_config(&stranger, None, true)).await.is_err(), "another authority");
    let mut http1 = client_config(&fixture.authority, None, true);
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(connect(&server, http1).await.is_err(), "HTTP/1 only");
}

#[tokio::test]
async fn client_certificates_when_required_and_when_optional() {
    for mode in [ClientCertificate::Required, ClientCertificate::Optional] {
        let fixture = fixture(mode);
        let server = start(Limits::default(), Some(&fixture.tls));
        let worker = fixture.authority.pair("worker.test", "worker");
        let stranger = Authority::new().pair("worker.test", "worker");
        let seen = async |shown: Option<&Pair>, tls13| {
            names_seen(&server, client_config(&fixture.authority, shown, tls13)).await
        };
        for tls13 in [true, false] {
            assert_eq!(seen(Some(&worker), tls13).await, Ok("worker.test,worker".to_owned()));
            assert!(seen(Some(&stranger), tls13).await.is_err(), "{mode:?}: signed by somebody else");
            let without = seen(None, tls13).await;
            assert_eq!(without.is_ok(), mode == ClientCertificate::Optional, "{mode:?}: {without:?}");
        }
    }
}

#[tokio::test]
async fn new_files_are_used_and_bad_ones_are_not() {
    let fixture = fixture(ClientCertificate::Off);
    let folder = fixture.folder.path();
    let server = start(Limits::default(), Some(&fixture.tls));
    let mut before = Client::new(connect(&server, client_config(&fixture.authority, None, true)).await.unwrap()).await;
    before.get("/x").await.unwrap();
    assert_eq!(shown(&server, &fixture).await, "first");

    let second = fixture.authority.pair("updraft.test", "second");
    let bad: [(&str, Vec<u8>); 4] = [
        ("server.pem", second.certificate_pem.clone().into_bytes()),
        ("server.pem", second.certificate_pem.as_bytes()[..200].to_vec()),
        ("server.pem", Vec::new()),
        ("server.key", b"-----BEGIN PRIVATE KEY-----\n".to_vec()),
    ];
    for (file, content) in bad {
        fs::write(folder.join(file), content).unwrap();
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(shown(&server, &fixture).await, "first");
    }
    fs::remove_file(folder.join("server.key")).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(shown(&server, &fixture).await, "first");

    write(folder, &second);
    let reloaded = async {
        while shown(&server, &fixture).await != "second" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, reloaded).await.expect("the new certificate is shown");
    before.get("/x").await.expect("connections from before go on");
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let fixture = fixture(ClientCertificate::Required);
    let folder = fixture.folder.path();
    let reloader = TlsReloader::new(&fixture.tls).unwrap();
    assert!(!reloader.reload_if_changed().unwrap());
    reloader.reload().unwrap();

    fs::write(folder.join("ca.pem"), "nonsense").unwrap();
    let error = reloader.reload().unwrap_err();
    assert!(matches!(error, TlsError::Pem { .. }) && error.to_string().contains("ca.pem"), "{error}");
    assert!(!reloader.reload_if_changed().unwrap(), "the same bad files need no second complaint");

    fs::write(folder.join("ca.pem"), &fixture.authority.pem).unwrap();
    assert!(reloader.reload_if_changed().unwrap());
    fs::write(folder.join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = reloader.reload_if_changed().unwrap_err();
    assert!(matches!(error, TlsError::Pair { .. }) && error.to_string().contains("server.key"), "{error}");
    fs::remove_file(folder.join("server.pem")).unwrap();
    let error = TlsReloader::new(&fixture.tls).map(drop).unwrap_err();
    assert!(matches!(error, TlsError::Read { .. }) && error.to_string().contains("server.pem"), "{error}");
}

#[tokio::test]
async fn a_silent_tls_handshake_is_closed_in_time() {
    let fixture = fixture(ClientCertificate::Off);
    let limits = Limits { handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = start(limits, Some(&fixture.tls));
    for start in [b"".as_slice(), &[0x16, 0x03, 0x01]] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = server.tcp().await;
        socket.write_all(start).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, socket.read_to_end(&mut answer)).await.expect("closed").ok();
    }
    // A handshake that is over does not count as HTTP/2.
    let mut io = connect(&server, client_config(&fixture.authority, None, true)).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, tokio::io::AsyncReadExt::read_to_end(&mut io, &mut answer)).await.expect("closed").ok();
}

#[tokio::test]
async fn drain_does_not_wait_for_tls_handshakes() {
    let fixture = fixture(ClientCertificate::Off);
    let server = start(Limits::default(), Some(&fixture.tls));
    let _silent = server.tcp().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = std::time::Instant::now();
    server.stop.graceful.cancel();
    assert_eq!(server.end().await, Drained { aborted: 0 });
    assert!(begun.elapsed() < Duration::from_secs(3), "well before the handshake's own limit");
}
