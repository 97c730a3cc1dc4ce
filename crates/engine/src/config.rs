//! What an operator can set about the engine.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings;

/// Settings of the query engine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Memory shared by all running queries, such as `4GiB`. Unset = 65 % of what the cgroup or, without one,
    /// the host allows. Raise it when queries spill or are refused for memory.
    #[schemars(with = "Option<String>")]
    pub memory_limit: Option<ByteSize>,
    /// The most memory one query may reserve, such as `1GiB`. Unset = the whole of `memory_limit`.
    /// Lower it to keep one heavy query from making all others spill.
    #[schemars(with = "Option<String>")]
    pub query_memory_limit: Option<ByteSize>,
    /// How the memory is shared: `datafusion-fair` gives every spilling operator an equal share;
    /// `greedy` is first come, first served. Change it only to compare.
    pub memory_pool: MemoryPoolKind,
    /// Folders for what queries spill to disk. Empty = the system's temporary folder. Give fast local disks.
    pub spill_directories: Vec<PathBuf>,
    /// The most that all queries together may have spilled at a time. A query that needs more is refused.
    #[schemars(with = "String")]
    pub spill_limit: ByteSize,
    /// How many partitions a query is split into: a number, or `auto` for one per CPU thread. More use more
    /// memory; fewer leave cores idle when few queries run. A session can lower or raise it.
    #[schemars(with = "String")]
    pub target_partitions: Partitions,
    /// Rows per batch between operators. Larger suits wide scans; smaller suits tight memory.
    pub batch_size: usize,
    /// Threads that plan and run queries. 0 = one per core.
    pub cpu_threads: usize,
    /// How long a statement may take from planning to its last row; `0s` = no limit. A session can change it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub statement_timeout: Duration,
    /// How long planning may take, the listing of files included.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub planning_timeout: Duration,
    /// Time zone in which timestamps without one are read and `now()` is shown, such as `UTC`, `+02:00`
    /// or `Europe/Berlin`. A session can change it.
    pub time_zone: String,
    /// The longest SQL text that is accepted.
    #[schemars(with = "String")]
    pub sql_length_max: ByteSize,
    /// The deepest nesting of parentheses and subqueries that is accepted.
    pub sql_depth_max: usize,
    /// The most operators (`AND`, `OR`, `+`, ...) one statement may have. Long chains of them cost stack.
    pub sql_operators_max: usize,
    /// The most tokens (words, numbers, signs) one statement may have. Raise it for very long `IN` lists.
    pub sql_tokens_max: usize,
    /// How many sessions with settings of their own may exist. At the bound new ones are refused.
    pub sessions_max: usize,
    /// How long a session is kept that nobody uses.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_ttl: Duration,
    /// How many prepared statements may be open, over all sessions. At the bound new ones are refused.
    pub prepared_max: usize,
    /// How many prepared statements one session may have open. At the bound new ones are refused.
    pub prepared_per_session_max: usize,
    /// How long a prepared statement is kept that nobody uses.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub prepared_ttl: Duration,
    /// How many planned queries wait for their client to fetch them. At the bound the oldest is dropped;
    /// its ticket still works as long as its tables have not changed.
    pub planned_max: usize,
    /// How long a planned query waits for its client to fetch it, and how long its ticket is valid.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ticket_ttl: Duration,
    /// How much of a result may wait for one slow client before its query pauses.
    #[schemars(with = "String")]
    pub stream_buffer: ByteSize,
    /// How long a client may read nothing of its result before its query is ended; `0s` = for ever.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stream_idle_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_limit: None,
            query_memory_limit: None,
            memory_pool: MemoryPoolKind::default(),
            spill_directories: Vec::new(),
            spill_limit: ByteSize::gib(100),
            target_partitions: Partitions::Auto,
            batch_size: 8192,
            cpu_threads: 0,
            statement_timeout: Duration::from_secs(30 * 60),
            planning_timeout: Duration::from_secs(60),
            time_zone: "UTC".to_owned(),
            sql_length_max: ByteSize::mib(1),
            sql_depth_max: 200,
            sql_operators_max: 2_000,
            sql_tokens_max: 200_000,
            sessions_max: 10_000,
            session_ttl: Duration::from_secs(60 * 60),
            prepared_max: 10_000,
            prepared_per_session_max: 1_000,
            prepared_ttl: Duration::from_secs(60 * 60),
            planned_max: 1_024,
            ticket_ttl: Duration::from_secs(10 * 60),
            stream_buffer: ByteSize::mib(4),
            stream_idle_timeout: Duration::from_secs(10 * 60),
        }
    }
}

impl Config {
    /// All that is wrong with these values, as (key, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut check = |key: &str, ok: bool, text: String| {
            if !ok {
                problems.push((key.to_owned(), text));
            }
        };
        let smallest = ByteSize::mib(16);
        for (key, limit) in [("memory_limit", self.memory_limit), ("query_memory_limit", self.query_memory_limit)] {
            let ok = limit.is_none_or(|limit| limit >= smallest);
            check(key, ok, format!("is too small to run a query; the smallest that works is {smallest}"));
        }
        if let (Some(total), Some(query)) = (self.memory_limit, self.query_memory_limit) {
            check(
                "query_memory_limit",
                query <= total,
                format!("is more than memory_limit ({total}); give at most that"),
            );
        }
        for (key, value, max) in [
            ("batch_size", self.batch_size, settings::BATCH_SIZE_MAX),
            ("sql_depth_max", self.sql_depth_max, 1_000),
            ("sql_operators_max", self.sql_operators_max, 10_000),
            ("sql_tokens_max", self.sql_tokens_max, 10_000_000),
            ("sessions_max", self.sessions_max, usize::MAX),
            ("prepared_max", self.prepared_max, usize::MAX),
            ("prepared_per_session_max", self.prepared_per_session_max, usize::MAX),
            ("planned_max", self.planned_max, usize::MAX),
        ] {
            let range = if max == usize::MAX { "at least 1".to_owned() } else { format!("from 1 to {max}") };
            check(key, (1..=max).contains(&value), format!("is {value}; give a number {range}"));
        }
        if let Err(reason) = settings::check_time_zone(&self.time_zone) {
            check("time_zone", false, reason);
        }
        check(
            "stream_buffer",
            self.stream_buffer >= ByteSize::kib(64),
            "is too small to stream a batch; give at least 64KiB".to_owned(),
        );
        problems
    }
}

/// Which memory pool shares the budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPoolKind {
    /// DataFusion's `FairSpillPool`.
    #[default]
    DatafusionFair,
    /// DataFusion's `GreedyMemoryPool`.
    Greedy,
}

/// Into how many partitions a query is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitions {
    /// One per thread of the CPU runtime.
    Auto,
    /// This many.
    Count(usize),
}

impl Partitions {
    /// The largest number that is accepted: beyond it channels and buffers cost more than they give.
    pub const MAX: usize = 1024;
}

impl FromStr for Partitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(count) if (1..=Self::MAX).contains(&count) => Ok(Self::Count(count)),
            _ => Err(format!("`{text}` is not a number from 1 to {} or `auto`", Self::MAX)),
        }
    }
}

impl std::fmt::Display for Partitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

impl Serialize for Partitions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Partitions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// TOML gives a number, the environment a string.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Number(u64),
            Text(String),
        }
        let text = match Given::deserialize(deserializer)? {
            Given::Number(number) => number.to_string(),
            Given::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}
