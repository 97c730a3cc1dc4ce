use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::{ANONYMOUS, api_token, password, seal};

/// Who may connect, and how logging in is limited.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Users that log in with a password, by name. A name holds no colon.
    pub users: BTreeMap<String, User>,
    /// API tokens for programs, by the name that is part of the token (`updraft_<name>_<secret>`).
    pub tokens: BTreeMap<String, Token>,
    /// Principals of TLS client certificates: a name in the certificate (DNS name, URI or e-mail address of the subject
    /// alternative names, or the common name) to the principal that it stands for. Needs `flight.tls.client_ca`.
    pub certificates: BTreeMap<String, String>,
    /// Whether callers without a credential are let in, as principal `anonymous`. Unset = only while no user, token or
    /// certificate is configured; then credentials are not looked at, since there is nothing to compare them with.
    pub anonymous: Option<bool>,
    /// How long a token that a login returns is good for. It is renewed while it is used. Shorten it when a removed user
    /// or a changed password must take effect sooner.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub token_ttl: Duration,
    /// How long after the login its token can still be renewed. Then the client has to log in again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub login_max_age: Duration,
    /// Key that seals tokens and tickets: at least 32 random bytes in hex or base64 (`openssl rand -hex 32`). Unset = a
    /// random one at each start, so that a restart logs everyone out. Set it when clients must survive a restart, and to
    /// the same value on servers that share clients. Changing it ends all logins at once.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub token_key: Option<SecretString>,
    /// How long a password that was right is not checked again in full (a full check takes some 20 ms of CPU). Clients
    /// that send the password with every call need it. `0s` checks each time.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub password_cache_ttl: Duration,
    /// Limits of guessing passwords.
    pub login_attempts: LoginAttempts,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            certificates: BTreeMap::new(),
            anonymous: None,
            token_ttl: Duration::from_secs(3600),
            login_max_age: Duration::from_secs(24 * 3600),
            token_key: None,
            password_cache_ttl: Duration::from_secs(60),
            login_attempts: LoginAttempts::default(),
        }
    }
}

/// A user that logs in with a password.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct User {
    /// argon2id hash of the password as a PHC string (`$argon2id$v=19$...`). `updraft password` makes one.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub password_hash: Option<SecretString>,
}

/// An API token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// The principal that calls with this token. Several tokens may share one.
    pub principal: String,
    /// `sha256:<hex>` of the whole token. `updraft token` makes a token and its hash. The hash is no secret.
    pub hash: String,
    /// When the token ends, as RFC 3339 in UTC (`2030-01-31T00:00:00Z`). Unset = never.
    pub expires_at: Option<String>,
}

/// Limits of guessing passwords.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoginAttempts {
    /// Failed logins of one user from one address before the next has to wait. Ten times as many are free for one
    /// address over all users. Raise it when many people share an address.
    pub free: u32,
    /// The first wait. Each further failure doubles it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub delay: Duration,
    /// The longest wait.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub delay_max: Duration,
    /// After this long without a failure, earlier ones are forgotten.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub forget_after: Duration,
    /// How many (user, address) pairs are counted at once. The stalest makes room for a new one.
    pub table_max: usize,
    /// Passwords that are checked at the same time: each takes a core for some 20 ms, and 19 MiB.
    pub concurrent_max: usize,
    /// Passwords that may wait for their check. More are refused with a hint to try again.
    pub waiting_max: usize,
}

impl Default for LoginAttempts {
    fn default() -> Self {
        Self {
            free: 5,
            delay: Duration::from_secs(1),
            delay_max: Duration::from_secs(300),
            forget_after: Duration::from_secs(900),
            table_max: 10_000,
            concurrent_max: 2,
            waiting_max: 1024,
        }
    }
}

impl Config {
    /// True when there is nobody to log in: no user, token or certificate.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.tokens.is_empty() && self.certificates.is_empty()
    }

    /// Whether callers without a credential are let in.
    pub fn anonymous_allowed(&self) -> bool {
        self.anonymous.unwrap_or_else(|| self.is_empty())
    }

    /// Everything that is wrong: (key path inside this section, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut problem = |key: String, text: String| problems.push((key, text));
        for (name, user) in &self.users {
            let key = format!("users.{name}");
            if name.contains(':') {
                problem(key.clone(), "holds a colon, which Basic logins cannot send; choose another name".into());
            }
            check_principal(&key, name, &mut problem);
            let key = format!("{key}.password_hash");
            match &user.password_hash {
                None => problem(key, "is missing; make one with `updraft password`".into()),
                Some(hash) => {
                    if let Err(text) = password::parse_hash(hash.expose_secret()) {
                        problem(key, text);
                    }
                }
            }
        }
        for (name, token) in &self.tokens {
            let key = format!("tokens.{name}");
            if !api_token::valid_name(name) {
                problem(key.clone(), "is no token name: 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'".into());
            }
            check_principal(&format!("{key}.principal"), &token.principal, &mut problem);
            if api_token::parse_hash(&token.hash).is_none() {
                let text = "is not `sha256:` and 64 hex digits; make a token and its hash with `updraft token`";
                problem(format!("{key}.hash"), text.into());
            }
            if let Some(text) = &token.expires_at
                && parse_date(text).is_none()
            {
                problem(format!("{key}.expires_at"), format!("{text:?} is not a date like 2030-01-31T00:00:00Z"));
            }
        }
        for (name, principal) in &self.certificates {
            check_principal(&format!("certificates.{name}"), principal, &mut problem);
        }
        if self.is_empty() && self.anonymous == Some(false) {
            let text = "is false, but there is no user, token or certificate: nobody could connect; configure one";
            problem("anonymous".into(), text.into());
        }
        if let Some(key) = &self.token_key
            && seal::parse_key(key).is_none()
        {
            let text =
                format!("is not {} or more bytes in hex or base64; try `openssl rand -hex 32`", seal::KEY_BYTES_MIN);
            problem("token_key".into(), text);
        }
        let minute = Duration::from_secs(60);
        if self.token_ttl < minute {
            problem("token_ttl".into(), "is under 60s, which is the tolerance between clocks; use 60s or more".into());
        }
        if self.login_max_age < self.token_ttl {
            problem("login_max_age".into(), "is shorter than token_ttl; make it at least as long".into());
        }
        let attempts = &self.login_attempts;
        let counts = [
            ("table_max", attempts.table_max),
            ("concurrent_max", attempts.concurrent_max),
            ("waiting_max", attempts.waiting_max),
        ];
        for (key, value) in counts {
            if value == 0 {
                problem(format!("login_attempts.{key}"), "is 0, so nobody could log in; use 1 or more".into());
            }
        }
        if attempts.delay_max < attempts.delay {
            problem("login_attempts.delay_max".into(), "is shorter than delay; make it at least as long".into());
        }
        problems
    }
}

fn check_principal(key: &str, name: &str, problem: &mut impl FnMut(String, String)) {
    if name.is_empty() {
        problem(key.to_owned(), "has no name; name the principal".into());
    } else if name == ANONYMOUS {
        let text = format!("{ANONYMOUS:?} is the name of callers without a credential; choose another");
        problem(key.to_owned(), text);
    } else if name.len() > 128 || name.chars().any(char::is_control) {
        problem(key.to_owned(), "is longer than 128 bytes or holds control characters; choose another name".into());
    }
}

/// Seconds since 1970 of an RFC 3339 date in UTC; `T` and `Z` may be left out.
pub(crate) fn parse_date(text: &str) -> Option<i64> {
    let time: SystemTime = humantime::parse_rfc3339_weak(text.trim()).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_sound_and_open() {
        let config = Config::default();
        assert_eq!(config.problems(), []);
        assert!(config.anonymous_allowed());
    }

    #[test]
    fn all_problems_are_reported_at_once_with_their_keys() {
        let user = |hash: &str| User { password_hash: Some(SecretString::from(hash)) };
        let token = |principal: &str, hash: &str, date: &str| Token {
            principal: principal.into(),
            hash: hash.into(),
            expires_at: Some(date.into()),
        };
        let config = Config {
            users: [
                ("a:b".to_owned(), user("hunter2")),
                (ANONYMOUS.to_owned(), user("hunter2")),
                ("none".to_owned(), User::default()),
            ]
            .into(),
            tokens: [("a b".to_owned(), token("", "sha256:00", "soon"))].into(),
            certificates: [("cn".to_owned(), "\n".to_owned())].into(),
            token_key: Some(SecretString::from("short-key-hunter2")),
            token_ttl: Duration::from_secs(1),
            login_max_age: Duration::ZERO,
            login_attempts: LoginAttempts {
                table_max: 0,
                concurrent_max: 0,
                waiting_max: 0,
                delay_max: Duration::ZERO,
                ..LoginAttempts::default()
            },
            ..Config::default()
        };
        let problems = config.problems();
        let mut keys: Vec<&str> = problems.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        let expected = [
            "certificates.cn",
            "login_attempts.concurrent_max",
            "login_attempts.delay_max",
            "login_attempts.table_max",
            "login_attempts.waiting_max",
            "login_max_age",
            "token_key",
            "token_ttl",
            "tokens.a b",
            "tokens.a b.expires_at",
            "tokens.a b.hash",
            "tokens.a b.principal",
            "users.a:b",
            "users.a:b.password_hash",
            "users.anonymous",
            "users.anonymous.password_hash",
            "users.none.password_hash",
        ];
        assert_eq!(keys, expected);
        assert!(!format!("{problems:?} {config:?}").contains("hunter2"), "no secret in a message or in Debug");
    }

    #[test]
    fn nobody_could_connect() {
        let config = Config { anonymous: Some(false), ..Config::default() };
        assert_eq!(config.problems().len(), 1);
        assert_eq!(config.problems()[0].0, "anonymous");
    }

    #[test]
    fn dates() {
        assert_eq!(parse_date("1970-01-01T00:01:00Z"), Some(60));
        assert_eq!(parse_date("1970-01-01 00:01:00"), Some(60));
        for bad in ["", "2030", "2030-13-01T00:00:00Z", "2030-01-31T00:00:00+02:00"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
