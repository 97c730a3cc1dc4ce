//! Arbitrary bytes against everything that reads what a client sent. Each test runs for 2 s, or for
//! `UPDRAFT_FUZZ_SECONDS`.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use arbtest::arbitrary::Unstructured;
use arbtest::arbtest;
use updraft_auth::{Authenticator, Config, Credential, Error, Identity, Principal, Sealer, parse_authorization};

fn budget() -> Duration {
    let seconds = std::env::var("UPDRAFT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    Duration::from_secs(seconds)
}

/// Bytes that are often nearly right: pieces of valid headers between arbitrary ones.
fn header(u: &mut Unstructured<'_>) -> arbtest::arbitrary::Result<Vec<u8>> {
    let mut value = Vec::new();
    while value.len() < 20_000 && u.ratio(7, 8)? {
        let pieces: [&[u8]; 9] =
            [b"Basic ", b"bearer ", b"YWxpY2U6c2VjcmV0", b"updraft_ci_", b"=", b" ", b":", b"AQ", b"\xff"];
        match u.ratio(1, 2)? {
            true => value.extend_from_slice(u.choose(&pieces)?),
            false => value.extend_from_slice(u.arbitrary::<&[u8]>()?),
        }
    }
    Ok(value)
}

#[test]
fn authorization_is_a_credential_or_malformed() {
    arbtest(|u| {
        let value = header(u)?;
        match parse_authorization(&value) {
            Ok(Credential::None) => panic!("a header is never no credential"),
            Ok(Credential::Basic { user, .. }) => assert!(!user.contains(':')),
            Ok(Credential::Bearer(token)) => assert!(!token.is_empty() && token.is_ascii()),
            Err(e) => assert!(matches!(e, Error::Malformed(_)), "{e:?}"),
        }
        Ok(())
    })
    .budget(budget());
}

#[test]
fn nothing_but_our_own_seals_opens() {
    let sealer = Sealer::new(&[1; 32]);
    arbtest(|u| {
        let message: &[u8] = u.arbitrary()?;
        let purpose = *u.choose(&["ticket", "token", ""])?;
        let mut sealed = sealer.seal(purpose, message);
        assert_eq!(sealer.open(purpose, &sealed), Ok(message));

        let original = sealed.clone();
        for _ in 0..u.int_in_range(1..=4)? {
            match u.int_in_range(0..=2)? {
                0 if !sealed.is_empty() => {
                    let at = u.choose_index(sealed.len())?;
                    sealed[at] = u.arbitrary()?;
                }
                1 => sealed.truncate(u.int_in_range(0..=sealed.len())?),
                _ => sealed.extend_from_slice(u.arbitrary()?),
            }
        }
        if sealed != original {
            assert_eq!(sealer.open(purpose, &sealed), Err(Error::Seal));
        }
        assert_eq!(sealer.open(purpose, message), Err(Error::Seal));
        Ok(())
    })
    .budget(budget());
}

#[test]
fn nothing_but_our_own_tokens_logs_in() {
    let config = Config {
        // Some certificate, so that login is required.
        certificates: [("worker.example".to_owned(), "worker".to_owned())].into(),
        ..Config::default()
    };
    let authenticator = Authenticator::new(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let token = authenticator.issue_token(&Identity::of(Principal::new("worker")), [1; 16]);
    let log_in = |token: String| {
        let peer = std::net::IpAddr::from([127, 0, 0, 1]);
        runtime.block_on(authenticator.authenticate(Credential::bearer(token), &[], peer))
    };
    assert!(log_in(token.clone()).is_ok());
    arbtest(|u| {
        let mut forged = token.clone().into_bytes();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(forged.len())?;
            forged[at] = *u.choose(b"ABCDabcd0123-_=.")?;
        }
        if u.ratio(1, 4)? {
            forged = header(u)?;
        }
        if forged != token.as_bytes() {
            let text = String::from_utf8_lossy(&forged).into_owned();
            assert_eq!(authenticator.renew(&text), None);
            assert_eq!(log_in(text), Err(Error::Unauthenticated));
        }
        Ok(())
    })
    .budget(budget());
}
