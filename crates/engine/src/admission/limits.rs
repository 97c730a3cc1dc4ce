//! What each principal may use, from the config.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use updraft_auth::Principal;

use crate::config::Config;
use crate::settings::TIMEOUT_MAX;

/// The entry that stands for every principal without one of its own.
const EVERYONE_ELSE: &str = "*";

/// The heaviest priority.
const PRIORITY_MAX: u32 = 100;

/// The priority of who has none set.
const PRIORITY_DEFAULT: u32 = 10;

/// Limits of one principal. What is not set is as the server has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrincipalConfig {
    /// How many heavy queries of this principal run at a time; more wait. Others pass them meanwhile.
    pub max_concurrent_queries: Option<usize>,
    /// How many queries of this principal may wait; 0 = refuse what cannot run at once.
    pub max_queued: Option<usize>,
    /// How long a query of this principal may wait before it is refused; `0s` = no limit.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub queue_timeout: Option<Duration>,
    /// How long a statement of this principal may take, longer or shorter than the server's; `0s` = no limit.
    /// Its sessions can lower it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub statement_timeout: Option<Duration>,
    /// How long this principal may read nothing of a result before its query is ended; `0s` = for ever.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub idle_stream_timeout: Option<Duration>,
    /// The most memory all queries of this principal together may hold, such as `2GiB`; light ones have a sixteenth of the
    /// server's beside it, 64 MiB at most.
    #[schemars(with = "Option<String>")]
    pub memory_limit: Option<ByteSize>,
    /// The most memory one query of this principal may hold, such as `1GiB`. Its sessions can lower it.
    #[schemars(with = "Option<String>")]
    pub query_memory_limit: Option<ByteSize>,
    /// The share of this principal when several wait, from 1 to 100: who has 20 is served twice as often as
    /// who has 10, which is the default.
    pub priority: Option<u32>,
}

/// What one principal may use, every value resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) max_concurrent_queries: usize,
    pub(crate) max_queued: usize,
    /// Zero = no limit.
    pub(crate) queue_timeout: Duration,
    /// Zero = no limit.
    pub(crate) statement_timeout: Duration,
    /// Zero = for ever.
    pub(crate) idle_stream_timeout: Duration,
    /// Bytes that all its queries together may hold; `u64::MAX` = no less than the server has.
    pub(crate) memory_limit: u64,
    /// Bytes that one of its queries may hold.
    pub(crate) query_memory_limit: u64,
    /// From 1.
    pub(crate) priority: u32,
}

impl Limits {
    /// What `own` and, where it is silent, the server's settings give. `memory_limit` is the server's, in bytes.
    fn resolve(config: &Config, own: &PrincipalConfig, cpu_threads: usize, memory_limit: u64) -> Self {
        let slots = config.concurrent_queries(cpu_threads);
        let total = own.memory_limit.map_or(u64::MAX, |limit| limit.0);
        let most = total.min(memory_limit);
        let query = own.query_memory_limit.or(config.query_memory_limit);
        Self {
            max_concurrent_queries: own.max_concurrent_queries.map_or(slots, |own| own.min(slots)),
            max_queued: own.max_queued.unwrap_or(config.max_queued),
            queue_timeout: own.queue_timeout.unwrap_or(config.queue_timeout),
            statement_timeout: own.statement_timeout.unwrap_or(config.statement_timeout),
            idle_stream_timeout: own.idle_stream_timeout.unwrap_or(config.idle_stream_timeout),
            memory_limit: total,
            query_memory_limit: query.map_or(most, |limit| limit.0.min(most)),
            priority: own.priority.unwrap_or(PRIORITY_DEFAULT),
        }
    }
}

/// Something for each principal that the config names, and for everyone else.
#[derive(Debug, Clone)]
pub(crate) struct PerPrincipal<T> {
    named: BTreeMap<String, T>,
    others: T,
}

impl PerPrincipal<Limits> {
    /// The limits of all. `memory_limit` is the server's, in bytes.
    pub(crate) fn limits(config: &Config, cpu_threads: usize, memory_limit: u64) -> Self {
        let resolve = |own: &PrincipalConfig| Limits::resolve(config, own, cpu_threads, memory_limit);
        let others = config.principals.get(EVERYONE_ELSE).map_or_else(|| resolve(&PrincipalConfig::default()), resolve);
        let named = config.principals.iter().filter(|(name, _)| *name != EVERYONE_ELSE);
        Self { named: named.map(|(name, own)| (name.clone(), resolve(own))).collect(), others }
    }
}

impl<T> PerPrincipal<T> {
    pub(crate) fn of(&self, principal: &Principal) -> &T {
        self.named.get(principal.name()).unwrap_or(&self.others)
    }

    /// What everyone has whom the config does not name.
    pub(crate) fn others(&self) -> &T {
        &self.others
    }

    pub(crate) fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> PerPrincipal<U> {
        let named = self.named.iter().map(|(name, value)| (name.clone(), f(value))).collect();
        PerPrincipal { named, others: f(&self.others) }
    }
}

/// What is wrong with the settings of queue and principals, as (key, what is wrong and what would be right).
pub(crate) fn problems(config: &Config, smallest: ByteSize) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    for (name, own) in &config.principals {
        let mut check = |key: &str, ok: bool, text: String| {
            if !ok {
                problems.push((format!("principals.{}.{key}", quoted(name)), text));
            }
        };
        let slots = config.max_concurrent_queries;
        for (key, own, server, zero) in [
            ("max_concurrent_queries", own.max_concurrent_queries, slots, false),
            ("max_queued", own.max_queued, config.max_queued, true),
        ] {
            let Some(own) = own else { continue };
            check(key, zero || own > 0, "is 0, so nothing could run; give at least 1".to_owned());
            let bounded = key == "max_queued" || slots > 0;
            check(key, !bounded || own <= server, format!("is more than engine.{key} ({server}); give at most that"));
        }
        for (key, own) in [
            ("queue_timeout", own.queue_timeout),
            ("statement_timeout", own.statement_timeout),
            ("idle_stream_timeout", own.idle_stream_timeout),
        ] {
            let ok = own.is_none_or(|own| own <= TIMEOUT_MAX);
            check(key, ok, format!("is too long; give at most {}", humantime::format_duration(TIMEOUT_MAX)));
        }
        let above = [
            own.memory_limit.map(|own| ("its memory_limit", own)),
            config.memory_limit.map(|all| ("engine.memory_limit", all)),
        ];
        for (key, own, above) in [
            ("memory_limit", own.memory_limit, &above[1..]),
            ("query_memory_limit", own.query_memory_limit, &above[..]),
        ] {
            let Some(own) = own else { continue };
            check(key, own >= smallest, format!("is too small to run a query; the smallest that works is {smallest}"));
            for (what, above) in above.iter().flatten() {
                check(key, own <= *above, format!("is more than {what} ({above}); give at most that"));
            }
        }
        let priority = own.priority.unwrap_or(PRIORITY_DEFAULT);
        let ok = (1..=PRIORITY_MAX).contains(&priority);
        check("priority", ok, format!("is {priority}; give a number from 1 to {PRIORITY_MAX}"));
        if name.is_empty() {
            problems.push(("principals.\"\"".to_owned(), "has no name; name the principal, or \"*\"".to_owned()));
        }
    }
    problems
}

/// A name as it stands in a key path.
fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-".contains(c));
    if bare { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn config<const N: usize>(principals: [(&str, PrincipalConfig); N]) -> Config {
        Config {
            max_concurrent_queries: 2,
            max_queued: 4,
            principals: principals.map(|(name, own)| (name.to_owned(), own)).into(),
            ..Config::default()
        }
    }

    #[test]
    fn problems_of_limits_are_all_reported() {
        let absurd = PrincipalConfig {
            max_concurrent_queries: Some(0),
            max_queued: Some(5),
            statement_timeout: Some(Duration::MAX),
            memory_limit: Some(ByteSize::gib(3)),
            query_memory_limit: Some(ByteSize::gib(4)),
            priority: Some(0),
            ..PrincipalConfig::default()
        };
        let many =
            PrincipalConfig { max_concurrent_queries: Some(3), priority: Some(101), ..PrincipalConfig::default() };
        let small = PrincipalConfig { memory_limit: Some(ByteSize::kib(1)), ..PrincipalConfig::default() };
        let config = Config {
            memory_limit: Some(ByteSize::gib(2)),
            max_light_queries: 0,
            queue_timeout: Duration::MAX,
            ..config([("a", absurd), ("b.c", many), ("*", small), ("", PrincipalConfig::default())])
        };
        let lines: Vec<_> = config.problems().into_iter().map(|(key, text)| format!("{key} {text}")).collect();
        expect![[r#"
            max_light_queries is 0; give a number from 1 to 100000
            queue_timeout is too long; give at most 1year, or 0s
            principals."" has no name; name the principal, or "*"
            principals."*".memory_limit is too small to run a query; the smallest that works is 16.0 MiB
            principals.a.max_concurrent_queries is 0, so nothing could run; give at least 1
            principals.a.max_queued is more than engine.max_queued (4); give at most that
            principals.a.statement_timeout is too long; give at most 1year
            principals.a.memory_limit is more than engine.memory_limit (2.0 GiB); give at most that
            principals.a.query_memory_limit is more than its memory_limit (3.0 GiB); give at most that
            principals.a.query_memory_limit is more than engine.memory_limit (2.0 GiB); give at most that
            principals.a.priority is 0; give a number from 1 to 100
            principals."b.c".max_concurrent_queries is more than engine.max_concurrent_queries (2); give at most that
            principals."b.c".priority is 101; give a number from 1 to 100"#]]
        .assert_eq(&lines.join("\n"));
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn limits_come_from_the_principal_the_star_or_the_server() {
        let named = PrincipalConfig {
            max_concurrent_queries: Some(1),
            statement_timeout: Some(Duration::from_secs(6 * 3600)),
            memory_limit: Some(ByteSize(1000)),
            priority: Some(50),
            ..PrincipalConfig::default()
        };
        let star =
            PrincipalConfig { max_queued: Some(1), queue_timeout: Some(Duration::ZERO), ..PrincipalConfig::default() };
        let limits = PerPrincipal::limits(&config([("etl", named), ("*", star)]), 4, 5000);
        let told: Vec<_> =
            ["etl", "anyone"].map(|name| format!("{name}: {:#?}", limits.of(&Principal::new(name)))).into();
        expect![[r#"
            etl: Limits {
                max_concurrent_queries: 1,
                max_queued: 4,
                queue_timeout: 300s,
                statement_timeout: 21600s,
                idle_stream_timeout: 120s,
                memory_limit: 1000,
                query_memory_limit: 1000,
                priority: 50,
            }
            anyone: Limits {
                max_concurrent_queries: 2,
                max_queued: 1,
                queue_timeout: 0ns,
                statement_timeout: 1800s,
                idle_stream_timeout: 120s,
                memory_limit: 18446744073709551615,
                query_memory_limit: 5000,
                priority: 10,
            }"#]]
        .assert_eq(&told.join("\n"));
    }
}
