//! Credentials against a configured authenticator, from the outside.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use updraft_auth::{
    Authenticator, Clock, Config, Credential, Error, Identity, LoginAttempts, Principal, Token, User, hash_password,
    new_api_token,
};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const START: u64 = 1_800_000_000;
const NO_CERTIFICATE: &[String] = &[];

struct Fixture {
    authenticator: Authenticator,
    clock: Clock,
    api_token: String,
}

fn config() -> (Config, String) {
    let (api_token, hash) = new_api_token("ci").unwrap();
    let user = |password: &str| User { password_hash: Some(SecretString::from(hash_password(password).unwrap())) };
    let config = Config {
        users: [("alice".to_owned(), user("secret")), ("bob".to_owned(), user("other"))].into(),
        tokens: [(
            "ci".to_owned(),
            Token {
                principal: "robot".into(),
                hash,
                // 1000 s after START.
                expires_at: Some("2027-01-15T08:16:40Z".into()),
            },
        )]
        .into(),
        certificates: [
            ("worker.example".to_owned(), "worker".to_owned()),
            ("spiffe://x/y".to_owned(), "worker".to_owned()),
            ("other.example".to_owned(), "other".to_owned()),
        ]
        .into(),
        token_key: Some(SecretString::from("ab".repeat(32))),
        ..Config::default()
    };
    (config, api_token)
}

fn fixture(change: impl FnOnce(&mut Config)) -> Fixture {
    let (mut config, api_token) = config();
    change(&mut config);
    let clock = Clock::manual(START);
    let authenticator = Authenticator::with_clock(&config, clock.clone()).unwrap();
    Fixture { authenticator, clock, api_token }
}

impl Fixture {
    async fn basic(&self, user: &str, password: &str) -> Result<Identity, Error> {
        self.authenticator.authenticate(Credential::basic(user, password), NO_CERTIFICATE, PEER).await
    }

    async fn bearer(&self, token: &str) -> Result<Identity, Error> {
        self.authenticator.authenticate(Credential::bearer(token), NO_CERTIFICATE, PEER).await
    }

    async fn certificate(&self, names: &[&str]) -> Result<Identity, Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.authenticator.authenticate(Credential::None, &names, PEER).await
    }

    fn session(&self) -> [u8; 16] {
        let mut session = [7; 16];
        let milliseconds = u64::try_from(self.clock.unix_seconds()).unwrap() * 1000;
        session[..6].copy_from_slice(&milliseconds.to_be_bytes()[2..]);
        session
    }
}

fn name(result: Result<Identity, Error>) -> Result<String, Error> {
    result.map(|identity| identity.principal.name().to_owned())
}

#[tokio::test]
async fn passwords_tokens_and_certificates_give_their_principals() {
    let fixture = fixture(|_| ());
    assert!(fixture.authenticator.required());
    assert_eq!(name(fixture.basic("alice", "secret").await), Ok("alice".into()));
    assert_eq!(name(fixture.basic("alice", "secret").await), Ok("alice".into()), "remembered");
    assert_eq!(name(fixture.basic("bob", "other").await), Ok("bob".into()));
    assert_eq!(name(fixture.bearer(&fixture.api_token).await), Ok("robot".into()));
    assert_eq!(name(fixture.certificate(&["worker.example"]).await), Ok("worker".into()));
    assert_eq!(name(fixture.certificate(&["nobody", "spiffe://x/y", "worker.example"]).await), Ok("worker".into()));
}

#[tokio::test]
async fn wrong_credentials_get_one_text() {
    let fixture = fixture(|_| ());
    assert_eq!(fixture.basic("alice", "other").await, Err(Error::Unauthenticated));
    assert_eq!(fixture.basic("mallory", "secret").await, Err(Error::Unauthenticated));
    assert_eq!(fixture.basic("", "").await, Err(Error::Unauthenticated));
    let mut token = fixture.api_token.clone();
    token.pop();
    for token in ["x", "updraft_ci_00", "updraft_other_00", &token] {
        assert_eq!(fixture.bearer(token).await, Err(Error::Unauthenticated), "{token}");
    }
    assert_eq!(fixture.certificate(&[]).await, Err(Error::Missing));
    assert_eq!(fixture.certificate(&["nobody"]).await, Err(Error::Missing));
    assert_eq!(fixture.certificate(&["worker.example", "other.example"]).await, Err(Error::Unauthenticated));
}

#[tokio::test]
async fn nothing_configured_lets_everyone_in_as_anonymous() {
    let authenticator = Authenticator::new(&Config::default()).unwrap();
    assert!(!authenticator.required());
    for credential in [Credential::None, Credential::basic("a", "b"), Credential::bearer("stale")] {
        let identity = authenticator.authenticate(credential, NO_CERTIFICATE, PEER).await.unwrap();
        assert!(identity.principal.is_anonymous());
        assert_eq!(identity.session, None);
    }
    let token = authenticator.issue_token(&Identity::of(Principal::anonymous()), [3; 16]);
    let identity = authenticator.authenticate(Credential::bearer(token), NO_CERTIFICATE, PEER).await.unwrap();
    assert_eq!(identity.session, Some([3; 16]), "a session works without login as well");
}

#[tokio::test]
async fn anonymous_beside_users_still_checks_what_is_sent() {
    let fixture = fixture(|config| config.anonymous = Some(true));
    assert!(!fixture.authenticator.required());
    assert_eq!(name(fixture.certificate(&[]).await), Ok("anonymous".into()));
    assert_eq!(fixture.basic("alice", "wrong").await, Err(Error::Unauthenticated));
    assert_eq!(fixture.bearer("stale").await, Err(Error::Unauthenticated));
}

#[tokio::test]
async fn session_tokens_expire_and_renew() {
    let fixture = fixture(|_| ());
    let identity = fixture.basic("alice", "secret").await.unwrap();
    let session = fixture.session();
    let token = fixture.authenticator.issue_token(&identity, session);
    let seen = fixture.bearer(&token).await.unwrap();
    assert_eq!((seen.principal.name(), seen.session), ("alice", Some(session)));

    assert_eq!(fixture.authenticator.renew(&token), None, "too early");
    fixture.clock.advance(Duration::from_secs(1800));
    let renewed = fixture.authenticator.renew(&token).unwrap();
    fixture.clock.advance(Duration::from_secs(1860));
    assert_eq!(fixture.bearer(&token).await, Err(Error::Expired));
    assert_eq!(fixture.authenticator.renew(&token), None, "too late");
    assert_eq!(fixture.bearer(&renewed).await.unwrap().session, Some(session));
    assert_eq!(fixture.authenticator.renew("garbage"), None);
    assert_eq!(fixture.authenticator.renew(&fixture.api_token), None);
}

#[tokio::test]
async fn a_login_cannot_be_renewed_for_ever() {
    let fixture = fixture(|config| config.login_max_age = Duration::from_secs(3 * 3600));
    let identity = fixture.basic("alice", "secret").await.unwrap();
    let mut token = fixture.authenticator.issue_token(&identity, fixture.session());
    let mut renewals = 0;
    for _ in 0..20 {
        fixture.clock.advance(Duration::from_secs(1800));
        if let Some(next) = fixture.authenticator.renew(&token) {
            renewals += 1;
            token = next;
        }
    }
    assert_eq!(renewals, 4);
    assert_eq!(fixture.bearer(&token).await, Err(Error::Expired));
}

#[tokio::test]
async fn who_logs_in_by_a_token_gains_no_time() {
    let fixture = fixture(|config| config.login_max_age = Duration::from_secs(2 * 3600));
    let identity = fixture.basic("alice", "secret").await.unwrap();
    let mut token = fixture.authenticator.issue_token(&identity, fixture.session());
    for _ in 0..5 {
        let identity = fixture.bearer(&token).await.unwrap();
        token = fixture.authenticator.issue_token(&identity, fixture.session());
        fixture.clock.advance(Duration::from_secs(1800));
        token = fixture.authenticator.renew(&token).unwrap_or(token);
    }
    assert_eq!(fixture.bearer(&token).await, Err(Error::Expired));
}

#[tokio::test]
async fn renewed_tokens_end_with_the_api_token_they_were_issued_for() {
    let fixture = fixture(|config| config.token_ttl = Duration::from_secs(600));
    let identity = fixture.bearer(&fixture.api_token).await.unwrap();
    let mut token = fixture.authenticator.issue_token(&identity, fixture.session());
    let mut renewals = 0;
    for _ in 0..4 {
        fixture.clock.advance(Duration::from_secs(300));
        if let Some(next) = fixture.authenticator.renew(&token) {
            renewals += 1;
            token = next;
        }
    }
    assert_eq!((renewals, fixture.bearer(&token).await), (2, Err(Error::Expired)));
}

#[tokio::test]
async fn api_tokens_end_and_so_do_tokens_issued_for_them() {
    let fixture = fixture(|_| ());
    let identity = fixture.bearer(&fixture.api_token).await.unwrap();
    let token = fixture.authenticator.issue_token(&identity, fixture.session());
    fixture.clock.advance(Duration::from_secs(999));
    assert!(fixture.bearer(&fixture.api_token).await.is_ok());
    assert_eq!(fixture.authenticator.renew(&token), None);
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(fixture.bearer(&fixture.api_token).await, Err(Error::Expired));
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(fixture.bearer(&token).await, Err(Error::Expired));
}

#[tokio::test]
async fn tokens_of_removed_users_and_other_keys_are_refused() {
    let before = fixture(|_| ());
    let identity = before.basic("alice", "secret").await.unwrap();
    let token = before.authenticator.issue_token(&identity, before.session());
    assert!(fixture(|_| ()).bearer(&token).await.is_ok(), "a restart with the same key");
    let removed = fixture(|config| drop(config.users.remove("alice")));
    assert_eq!(removed.bearer(&token).await, Err(Error::Unauthenticated));
    let other_key = fixture(|config| config.token_key = None);
    assert_eq!(other_key.bearer(&token).await, Err(Error::Unauthenticated));
}

#[tokio::test]
async fn guessing_gets_slow_even_for_the_right_password() {
    let fixture = fixture(|_| ());
    assert!(fixture.basic("alice", "secret").await.is_ok(), "remembered from here on");
    for _ in 0..6 {
        assert_eq!(fixture.basic("alice", "guess").await, Err(Error::Unauthenticated));
    }
    let blocked = Err(Error::Throttled { retry_after: Duration::from_secs(1) });
    assert_eq!(fixture.basic("alice", "guess").await, blocked);
    assert_eq!(fixture.basic("alice", "secret").await, blocked, "else the cache would tell a guess from a hit");
    assert!(fixture.basic("bob", "other").await.is_ok(), "others go on");
    fixture.clock.advance(Duration::from_secs(1));
    assert!(fixture.basic("alice", "secret").await.is_ok());
}

#[tokio::test]
async fn parallel_guesses_are_stopped_as_well() {
    let fixture = fixture(|_| ());
    let guesses = (0..40).map(|n| {
        let authenticator = fixture.authenticator.clone();
        tokio::spawn(async move {
            authenticator.authenticate(Credential::basic("alice", format!("guess{n}")), NO_CERTIFICATE, PEER).await
        })
    });
    let (mut wrong, mut throttled) = (0, 0);
    for guess in guesses.collect::<Vec<_>>() {
        match guess.await.unwrap() {
            Err(Error::Unauthenticated) => wrong += 1,
            Err(Error::Throttled { .. }) => throttled += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(wrong <= 8, "6 tries and those already being checked, not {wrong}");
    assert_eq!(wrong + throttled, 40);
}

#[tokio::test]
async fn a_hundred_right_logins_at_once_all_work() {
    let fixture = fixture(|_| ());
    let logins = (0..100).map(|_| {
        let authenticator = fixture.authenticator.clone();
        tokio::spawn(async move {
            authenticator.authenticate(Credential::basic("alice", "secret"), NO_CERTIFICATE, PEER).await
        })
    });
    for login in logins.collect::<Vec<_>>() {
        assert!(login.await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let fixture = fixture(|config| {
        config.login_attempts = LoginAttempts { concurrent_max: 1, waiting_max: 1, ..LoginAttempts::default() };
    });
    let (a, b, c) =
        tokio::join!(fixture.basic("alice", "secret"), fixture.basic("bob", "other"), fixture.basic("mallory", "x"),);
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(c, Err(Error::Throttled { retry_after: Duration::from_secs(1) }));
    assert!(fixture.basic("bob", "other").await.is_ok(), "and the places are given back");
}

#[tokio::test]
async fn a_remembered_password_is_quick_and_an_unknown_user_is_as_slow_as_a_known_one() {
    let fixture = fixture(|config| config.login_attempts.free = 1000);
    fixture.basic("alice", "secret").await.unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        fixture.basic("alice", "secret").await.unwrap();
    }
    let remembered = start.elapsed() / 20;
    let time = async |user: &str| {
        let mut best = Duration::MAX;
        for n in 0..5 {
            let start = Instant::now();
            let _ = fixture.basic(user, &format!("wrong{n}")).await;
            best = best.min(start.elapsed());
        }
        best
    };
    let (known, unknown) = (time("alice").await, time("mallory").await);
    assert!(remembered * 5 < known, "remembered {remembered:?}, full check {known:?}");
    assert!(unknown * 3 > known, "unknown {unknown:?}, known {known:?}");
}

#[tokio::test]
async fn the_cache_ends() {
    let fixture = fixture(|config| config.password_cache_ttl = Duration::ZERO);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(fixture.basic("alice", "secret").await.is_ok());
    }
    assert!(start.elapsed() > Duration::from_millis(4), "two full checks");
}

#[test]
fn problems_of_the_config_come_back() {
    let config = Config { anonymous: Some(false), ..Config::default() };
    assert_eq!(Authenticator::new(&config).unwrap_err(), config.problems());
}

#[tokio::test]
async fn debug_shows_no_secret() {
    let fixture = fixture(|_| ());
    let shown = format!("{:?}", fixture.authenticator);
    assert!(!shown.contains("argon2") && !shown.contains("alice"), "{shown}");
}
