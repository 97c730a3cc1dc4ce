use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};
use updraft_proto::v1::TokenClaims;
use zeroize::Zeroizing;

use crate::throttle::Throttle;
use crate::verified::Verified;
use crate::{Clock, Config, Credential, Error, Identity, Principal, Sealer};
use crate::{api_token, config, password, seal, session_token};

/// Passwords remembered as right at one time. One entry is some 50 bytes.
const VERIFIED_MAX: usize = 4096;

/// Tells who is calling, and issues tokens. Cloning is cheap; all clones share one state.
#[derive(Clone)]
pub struct Authenticator(Arc<State>);

struct State {
    users: BTreeMap<String, Arc<StoredUser>>,
    tokens: BTreeMap<String, StoredToken>,
    certificates: BTreeMap<String, Principal>,
    /// Everyone who can have logged in. A session token of somebody else is one of a user since removed.
    principals: BTreeSet<Principal>,
    anonymous: bool,
    /// Nothing is configured: credentials have nothing to be compared with and are not looked at.
    open: bool,
    token_ttl: Duration,
    login_max_age: Duration,
    sealer: Sealer,
    clock: Clock,
    throttle: Throttle,
    verified: Verified,
    /// One permit for each password being checked.
    workers: Arc<Semaphore>,
    /// One permit for each password being checked or waiting for it.
    queue: Arc<Semaphore>,
    /// Chooses which user's hash an unknown name is checked against.
    decoy: RandomState,
}

struct StoredUser {
    principal: Principal,
    hash: PasswordHash,
    hash_text: SecretString,
}

struct StoredToken {
    principal: Principal,
    hash: [u8; 32],
    expires_at_seconds: Option<i64>,
}

impl Authenticator {
    /// Builds the tables from the config. Errors: the same list as [`Config::problems`].
    pub fn new(config: &Config) -> Result<Self, Vec<(String, String)>> {
        Self::with_clock(config, Clock::system())
    }

    /// As [`new`](Self::new), with another clock.
    pub fn with_clock(config: &Config, clock: Clock) -> Result<Self, Vec<(String, String)>> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems);
        }
        let no_random = |e: Error| vec![(String::new(), e.to_string())];
        let sealer = match config.token_key.as_ref().and_then(seal::parse_key) {
            Some(key) => Sealer::new(&key),
            None => {
                info!("auth.token_key is not set: logins end when this process ends");
                Sealer::random().map_err(no_random)?
            }
        };
        let users = config
            .users
            .iter()
            .filter_map(|(name, user)| {
                let hash_text = user.password_hash.clone()?;
                let hash = password::parse_hash(hash_text.expose_secret()).ok()?;
                let principal = Principal::new(name.as_str());
                Some((name.clone(), Arc::new(StoredUser { principal, hash, hash_text })))
            })
            .collect::<BTreeMap<_, _>>();
        let tokens = config
            .tokens
            .iter()
            .filter_map(|(name, token)| {
                let hash = api_token::parse_hash(&token.hash)?;
                let expires_at_seconds = token.expires_at.as_deref().and_then(config::parse_date);
                let principal = Principal::new(token.principal.as_str());
                Some((name.clone(), StoredToken { principal, hash, expires_at_seconds }))
            })
            .collect::<BTreeMap<_, _>>();
        let certificates = config
            .certificates
            .iter()
            .map(|(name, principal)| (name.clone(), Principal::new(principal.as_str())))
            .collect::<BTreeMap<_, _>>();
        let anonymous = config.anonymous_allowed();
        let principals = users
            .values()
            .map(|user| &user.principal)
            .chain(tokens.values().map(|token| &token.principal))
            .chain(certificates.values())
            .cloned()
            .chain(anonymous.then(Principal::anonymous))
            .collect();
        let attempts = &config.login_attempts;
        Ok(Self(Arc::new(State {
            users,
            tokens,
            certificates,
            principals,
            anonymous,
            open: config.is_empty() && anonymous,
            token_ttl: config.token_ttl,
            login_max_age: config.login_max_age,
            sealer,
            clock,
            throttle: Throttle::new(attempts.clone()),
            verified: Verified::new(config.password_cache_ttl, VERIFIED_MAX).map_err(no_random)?,
            workers: semaphore(attempts.concurrent_max),
            queue: semaphore(attempts.concurrent_max.saturating_add(attempts.waiting_max)),
            decoy: RandomState::new(),
        })))
    }

    /// True when callers without a credential are refused.
    pub fn required(&self) -> bool {
        !self.0.anonymous
    }

    /// What seals this server's tokens; tickets use it too, under another purpose.
    pub fn sealer(&self) -> &Sealer {
        &self.0.sealer
    }

    /// Tells who is calling. `certificate` holds the names in the verified client certificate, empty without one; it
    /// counts only when no other credential came. `peer` is where failed logins are counted.
    ///
    /// Errors: [`Error::Missing`], [`Error::Unauthenticated`], [`Error::Expired`], [`Error::Throttled`]. Dropping the
    /// future is safe: a password check that has begun ends by itself and still counts against the bound.
    pub async fn authenticate(
        &self,
        credential: Credential,
        certificate: &[String],
        peer: IpAddr,
    ) -> Result<Identity, Error> {
        let state = &*self.0;
        if state.open {
            // A token of an earlier login keeps its session; one from before a restart is as good as none.
            let identity = match &credential {
                Credential::Bearer(token) => state.session_token(token).ok(),
                Credential::None | Credential::Basic { .. } => None,
            };
            return Ok(identity.unwrap_or_else(|| Identity::of(Principal::anonymous())));
        }
        match credential {
            Credential::None => state.without_credential(certificate),
            Credential::Basic { user, password } => state.password(&user, password, peer).await,
            Credential::Bearer(token) => match api_token::name_of(&token) {
                Some(name) => state.api_token(name, &token),
                None => state.session_token(&token),
            },
        }
    }

    /// A token for calls of this session. It is good for `token_ttl`, and can be renewed for `login_max_age`, or until the
    /// credential ends that it was issued for. That of a token is the one the token was issued for.
    pub fn issue_token(&self, identity: &Identity, session: [u8; 16]) -> String {
        let state = &*self.0;
        let now = state.clock.unix_seconds();
        let login_ends = now.saturating_add(session_token::seconds(state.login_max_age));
        let login_ends = identity.expires_at_seconds.map_or(login_ends, |limit| limit.min(login_ends));
        let claims = TokenClaims {
            principal: identity.principal.name().to_owned(),
            session: session.to_vec(),
            issued_at_seconds: now,
            expires_at_seconds: now.saturating_add(session_token::seconds(state.token_ttl)).min(login_ends),
            login_ends_at_seconds: login_ends,
        };
        session_token::issue(&state.sealer, &claims)
    }

    /// A fresh token for the same login, when `token` is one of ours in the second half of its life.
    pub fn renew(&self, token: &str) -> Option<String> {
        let state = &*self.0;
        let claims = state.claims(token).ok()?;
        let now = state.clock.unix_seconds();
        let renewed = session_token::renewed(&claims, state.token_ttl, now)?;
        Some(session_token::issue(&state.sealer, &renewed))
    }
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator")
            .field("users", &self.0.users.len())
            .field("tokens", &self.0.tokens.len())
            .field("certificates", &self.0.certificates.len())
            .field("anonymous", &self.0.anonymous)
            .finish()
    }
}

impl State {
    fn without_credential(&self, certificate: &[String]) -> Result<Identity, Error> {
        let mut principals = certificate.iter().filter_map(|name| self.certificates.get(name));
        match principals.next() {
            // Names of one certificate that stand for different principals: choosing one would be guessing.
            Some(first) if principals.any(|other| other != first) => {
                warn!(names = ?certificate, "client certificate maps to several principals, refused");
                Err(Error::Unauthenticated)
            }
            Some(principal) => Ok(Identity::of(principal.clone())),
            None if self.anonymous => Ok(Identity::of(Principal::anonymous())),
            None => Err(Error::Missing),
        }
    }

    async fn password(&self, name: &str, password: Zeroizing<String>, peer: IpAddr) -> Result<Identity, Error> {
        // Before the cache: otherwise a remembered password could be guessed at full speed.
        self.throttled(name, peer)?;
        let user = self.users.get(name);
        let fingerprint = user.map(|user| self.verified.fingerprint(name, user.hash_text.expose_secret(), &password));
        if let Some(identity) = self.remembered(user, fingerprint.as_ref()) {
            return Ok(identity);
        }
        let _queued = Arc::clone(&self.queue)
            .try_acquire_owned()
            .map_err(|_| Error::Throttled { retry_after: Duration::from_secs(1) })?;
        let worker = Arc::clone(&self.workers)
            .acquire_owned()
            .await
            .map_err(|_| Error::Internal { step: "waiting for a password check" })?;
        // Others may have failed, or got it right, while this one waited.
        self.throttled(name, peer)?;
        if let Some(identity) = self.remembered(user, fingerprint.as_ref()) {
            return Ok(identity);
        }
        // An unknown user costs as much as a known one, so that time does not tell which names exist.
        let Some(checked) = user.or_else(|| self.decoy(name)).cloned() else {
            return self.failed(name, peer);
        };
        // Kept until the failure is counted: the next guess in the queue must find it.
        let (right, _worker) = check(checked, password, worker).await?;
        match (user, fingerprint) {
            (Some(user), Some(fingerprint)) if right => {
                self.throttle.succeeded(name, peer);
                self.verified.insert(fingerprint, self.clock.steady());
                Ok(Identity::of(user.principal.clone()))
            }
            _ => self.failed(name, peer),
        }
    }

    fn throttled(&self, name: &str, peer: IpAddr) -> Result<(), Error> {
        self.throttle.check(name, peer, self.clock.steady()).map_err(|retry_after| Error::Throttled { retry_after })
    }

    fn remembered(&self, user: Option<&Arc<StoredUser>>, fingerprint: Option<&[u8; 32]>) -> Option<Identity> {
        let known = self.verified.contains(fingerprint?, self.clock.steady());
        user.filter(|_| known).map(|user| Identity::of(user.principal.clone()))
    }

    fn failed(&self, name: &str, peer: IpAddr) -> Result<Identity, Error> {
        self.throttle.failed(name, peer, self.clock.steady());
        // Only names from the config are logged: people type passwords into the user field.
        let user = if self.users.contains_key(name) { name } else { "(unknown)" };
        info!(user, %peer, "login failed");
        Err(Error::Unauthenticated)
    }

    /// Some user, always the same for the same name, so that unknown names cost what the known ones cost.
    fn decoy(&self, name: &str) -> Option<&Arc<StoredUser>> {
        let count = u64::try_from(self.users.len()).ok().filter(|count| *count > 0)?;
        let index = usize::try_from(self.decoy.hash_one(name) % count).ok()?;
        self.users.values().nth(index)
    }

    fn api_token(&self, name: &str, token: &str) -> Result<Identity, Error> {
        let stored = self.tokens.get(name);
        let right = api_token::verify(token, stored.map_or(&[0; 32], |stored| &stored.hash));
        let stored = stored.filter(|_| right).ok_or(Error::Unauthenticated)?;
        if stored.expires_at_seconds.is_some_and(|end| self.clock.unix_seconds() >= end) {
            return Err(Error::Expired);
        }
        let expires_at_seconds = stored.expires_at_seconds;
        Ok(Identity { expires_at_seconds, ..Identity::of(stored.principal.clone()) })
    }

    fn session_token(&self, token: &str) -> Result<Identity, Error> {
        let claims = self.claims(token)?;
        let session = claims.session.as_slice().try_into().map_err(|_| Error::Unauthenticated)?;
        Ok(Identity {
            session: Some(session),
            // Of a token that another release has issued it is not known.
            expires_at_seconds: Some(claims.login_ends_at_seconds.max(claims.expires_at_seconds)),
            ..Identity::of(Principal::new(claims.principal))
        })
    }

    fn claims(&self, token: &str) -> Result<TokenClaims, Error> {
        let claims = session_token::open(&self.sealer, token, self.clock.unix_seconds())?;
        if !self.principals.contains(&Principal::new(claims.principal.as_str())) {
            return Err(Error::Unauthenticated);
        }
        Ok(claims)
    }
}

/// The slow part, off the runtime's threads. It keeps its permit to the end, also when nobody waits for it any more,
/// and gives it back with the answer.
async fn check(
    user: Arc<StoredUser>,
    password: Zeroizing<String>,
    permit: OwnedSemaphorePermit,
) -> Result<(bool, OwnedSemaphorePermit), Error> {
    tokio::task::spawn_blocking(move || {
        let right = password::verify(&user.hash, &password);
        (right, permit)
    })
    .await
    .map_err(|_| Error::Internal { step: "checking a password" })
}

fn semaphore(permits: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}
