//! What an operator can set about the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admission::{self, PrincipalConfig};
use crate::memory;
use crate::options::DatafusionOptions;
use crate::settings;

/// The most queries that may run or wait at a time: each costs a task and some kilobytes.
const QUERIES_MAX: usize = 100_000;
/// With less no query runs.
const MEMORY_MIN: ByteSize = ByteSize::mib(16);

/// Settings of the query engine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Memory shared by all running queries, such as `4GiB`. Unset = what fits the cgroup, its limit less 256 MiB
    /// divided by 1.15, or 40 % of its limit where that is more, as it is below 474 MiB; without a cgroup 65 % of the
    /// host's memory. The log says at the start which it is. Raise it when queries spill or are refused for memory.
    #[schemars(with = "Option<String>")]
    pub memory_limit: Option<ByteSize>,
    /// The most memory one query may reserve, such as `1GiB`. Unset = the whole of `memory_limit`.
    /// Lower it to keep one heavy query from making all others spill.
    #[schemars(with = "Option<String>")]
    pub query_memory_limit: Option<ByteSize>,
    /// How the memory is shared. `fair` holds the limit at every request, shares between principals and their
    /// queries, and counts what DataFusion does not. `datafusion-fair` and `greedy` are DataFusion's own pools:
    /// equal shares for spilling operators, and first come, first served. Change it only to compare.
    pub memory_pool: MemoryPoolKind,
    /// Whether to compare the memory of the whole process with `memory_limit` all the time, and to make queries
    /// give way when it comes close. Turn it off only where the process has large memory of its own beside queries,
    /// or to compare. The pools of DataFusion go without.
    pub memory_guard: bool,
    /// Folders for what queries spill to disk. Empty = the system's temporary folder. Give fast local disks.
    pub spill_directories: Vec<PathBuf>,
    /// The most that all queries together may have spilled at a time; a query that needs more is refused. `0B` =
    /// queries never spill. Keep it below what is free in the folders.
    #[schemars(with = "String")]
    pub spill_limit: ByteSize,
    /// The most that one query may have spilled at a time. Unset = the whole of `spill_limit`. Lower it to keep one
    /// query from taking the disk of all others.
    #[schemars(with = "Option<String>")]
    pub query_spill_limit: Option<ByteSize>,
    /// How spilled data is compressed. Change it when CPU or disk is what queries that spill wait for.
    pub spill_compression: SpillCompression,
    /// The most spilled files that one merge of a sort reads at a time; `0` = as many as memory allows. Each takes a
    /// file descriptor and memory that is not in the budget: up to 128 KiB and one compressed batch. Fewer than
    /// there are files mean that data is written and read once more.
    pub spill_merge_fan_in: usize,
    /// How many partitions a query is split into: a number, or `auto` for as many as its data is worth, at most one
    /// per CPU thread, and fewer while others run. More use more memory; fewer leave cores idle. When what a query
    /// needs is not free it is split less, whatever this says. A session can lower or raise it.
    #[schemars(with = "String")]
    pub target_partitions: Partitions,
    /// Rows per batch between operators. Larger suits wide scans; smaller suits tight memory. Where rows only pass
    /// through to the client there are up to eight times as many, unless a session has set it.
    pub batch_size: usize,
    /// Threads that run heavy queries, and as many that plan and run light ones; these the system lets go first.
    /// 0 = one per core.
    pub cpu_threads: usize,
    /// How many heavy queries run at a time; more wait in a queue. 0 = two per CPU thread, at least 8. What runs
    /// together is bounded by its memory first; lower it when many at a time slow each other down.
    pub max_concurrent_queries: usize,
    /// How many light queries (metadata, statistics, tiny scans) run at a time, beside the heavy ones. Raise it
    /// when they wait although the machine idles.
    pub max_light_queries: usize,
    /// How many heavy queries may wait, and as many light ones; at the bound whoever has the most waiting is
    /// refused and asked to try again. 0 = refuse what cannot run at once.
    pub max_queued: usize,
    /// How long a query may wait in the queue before it is refused and asked to try again; `0s` = no limit.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub queue_timeout: Duration,
    /// How long a statement may take from planning to its last row, its time in the queue included; `0s` = no
    /// limit. A session can lower it; `principals` can raise it for some.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub statement_timeout: Duration,
    /// How long planning may take, the listing of files included.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub planning_timeout: Duration,
    /// Memory for plans of statements that were asked before; the plans used longest ago go first, and all of a changed
    /// table are made anew. `0B` = every statement is planned anew. Raise it when `/status` shows many entries and few
    /// hits.
    #[schemars(with = "String")]
    pub plan_cache_limit: ByteSize,
    /// Memory for results that are given again as long as no table in them has changed; the results used longest ago
    /// go first, and all do when queries need the memory. `0B` = off. Set it when the same dashboards are opened again
    /// and again. A result larger than an eighth of it is not kept. A session turns it off for itself with
    /// `SET result_cache = off`.
    #[schemars(with = "String")]
    pub result_cache_limit: ByteSize,
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
    /// How many prepared statements may be open, over all sessions. At the bound those that nobody used for a minute make
    /// room; without any, new ones are refused.
    pub prepared_max: usize,
    /// Memory for the texts and plans of all prepared statements; the same happens at this bound.
    #[schemars(with = "String")]
    pub prepared_limit: ByteSize,
    /// How many prepared statements one session may have open. At the bound new ones are refused.
    pub prepared_per_session_max: usize,
    /// How long a prepared statement is kept that nobody uses.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub prepared_ttl: Duration,
    /// How many planned queries wait for their client to fetch them. At the bound the oldest is dropped;
    /// its ticket still works as long as its tables have not changed.
    pub planned_max: usize,
    /// Memory for the plans of queries that wait for their client to fetch them. At the bound the oldest is dropped, as at
    /// that of `planned_max`. Raise it when many clients plan long statements well before they fetch them.
    #[schemars(with = "String")]
    pub planned_limit: ByteSize,
    /// How long a planned query waits for its client to fetch it, and how long its ticket is valid.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ticket_ttl: Duration,
    /// How much of a result may wait for one slow client before its query pauses. Every stream that is read fills it, so lower
    /// it for many clients; more makes no client quicker that reads all the time. What is being compressed waits here too, up to
    /// 256 KiB in each task: raise it where more than four cores are to compress one result.
    #[schemars(with = "String")]
    pub stream_buffer: ByteSize,
    /// How long a client may read nothing of its result before its query is ended; `0s` = for ever. Its call is cut 2 to 2.5
    /// times as long after it stopped, and its connection as long again after that, when the socket takes nothing. Less than
    /// 16 KiB in that time is nothing, unless it was all there was. Meanwhile the query stands still and keeps what its
    /// operators have in memory, so keep it below `queue_timeout`. A server that drains waits no longer than 5 s.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_stream_timeout: Duration,
    /// Limits of single principals, by name. `"*"` stands for each principal that is not named here.
    pub principals: BTreeMap<String, PrincipalConfig>,
    /// Options of DataFusion, without `datafusion.` before their names: `execution.parquet.pushdown_filters = true`.
    /// Refused, with the reason, are those that a setting of Updraft governs, that would leave the memory budget, that
    /// clients are told is otherwise (`catalog.*`, `sql_parser.dialect`, the case of names, where NULLs sort), and a
    /// few with which queries fail or never end. A query that ran out of memory is tried anew without hash joins, and
    /// with sorts that take no batches together, whatever is said here. Set one when its documentation promises
    /// something for your queries; most are best left alone.
    pub datafusion: DatafusionOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_limit: None,
            query_memory_limit: None,
            memory_pool: MemoryPoolKind::default(),
            memory_guard: true,
            spill_directories: Vec::new(),
            spill_limit: ByteSize::gib(100),
            query_spill_limit: None,
            spill_compression: SpillCompression::default(),
            spill_merge_fan_in: 32,
            target_partitions: Partitions::Auto,
            batch_size: 8192,
            cpu_threads: 0,
            max_concurrent_queries: 0,
            max_light_queries: 256,
            max_queued: 512,
            queue_timeout: Duration::from_secs(5 * 60),
            statement_timeout: Duration::from_secs(30 * 60),
            planning_timeout: Duration::from_secs(60),
            plan_cache_limit: ByteSize::mib(64),
            result_cache_limit: ByteSize::b(0),
            time_zone: "UTC".to_owned(),
            sql_length_max: ByteSize::mib(1),
            sql_depth_max: 200,
            sql_operators_max: 2_000,
            sql_tokens_max: 200_000,
            sessions_max: 10_000,
            session_ttl: Duration::from_secs(60 * 60),
            prepared_max: 10_000,
            prepared_limit: ByteSize::mib(64),
            prepared_per_session_max: 1_000,
            prepared_ttl: Duration::from_secs(60 * 60),
            planned_max: 1_024,
            planned_limit: ByteSize::mib(64),
            ticket_ttl: Duration::from_secs(10 * 60),
            stream_buffer: ByteSize::mib(1),
            idle_stream_timeout: Duration::from_secs(2 * 60),
            principals: BTreeMap::new(),
            datafusion: DatafusionOptions::default(),
        }
    }
}

impl Config {
    /// Bytes that all queries together may use, and where the number comes from: `memory_limit`, or what suits this machine.
    pub fn memory_bytes(&self) -> (u64, String) {
        match self.memory_limit {
            Some(limit) => (limit.0, "engine.memory_limit".to_owned()),
            None => memory::default_limit(),
        }
    }

    /// All that is wrong with these values, as (key, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut check = |key: &str, ok: bool, text: String| {
            if !ok {
                problems.push((key.to_owned(), text));
            }
        };
        let too_small = format!("too small to run a query; the smallest that works is {MEMORY_MIN}");
        for (key, limit) in [("memory_limit", self.memory_limit), ("query_memory_limit", self.query_memory_limit)] {
            check(key, limit.is_none_or(|limit| limit >= MEMORY_MIN), format!("is {too_small}"));
        }
        if self.memory_limit.is_none() {
            let (limit, source) = self.memory_bytes();
            let text = format!("is not set, and {}, {source}, is {too_small}", ByteSize(limit));
            check("memory_limit", limit >= MEMORY_MIN.0, text);
        }
        if let (Some(total), Some(query)) = (self.memory_limit, self.query_memory_limit) {
            check(
                "query_memory_limit",
                query <= total,
                format!("is more than memory_limit ({total}); give at most that"),
            );
        }
        if let Some(total) = self.memory_limit {
            check(
                "result_cache_limit",
                self.result_cache_limit <= total,
                format!("is more than memory_limit ({total}), in which it has its place; give at most that"),
            );
        }
        if let Some(query) = self.query_spill_limit {
            check(
                "query_spill_limit",
                query <= self.spill_limit,
                format!("is more than spill_limit ({}); give at most that", self.spill_limit),
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
            ("max_light_queries", self.max_light_queries, QUERIES_MAX),
        ] {
            let range = if max == usize::MAX { "at least 1".to_owned() } else { format!("from 1 to {max}") };
            check(key, (1..=max).contains(&value), format!("is {value}; give a number {range}"));
        }
        for (key, value) in [("max_concurrent_queries", self.max_concurrent_queries), ("max_queued", self.max_queued)] {
            check(key, value <= QUERIES_MAX, format!("is {value}; give a number from 0 to {QUERIES_MAX}"));
        }
        for (key, value) in [
            ("queue_timeout", self.queue_timeout),
            ("statement_timeout", self.statement_timeout),
            ("idle_stream_timeout", self.idle_stream_timeout),
        ] {
            let longest = humantime::format_duration(settings::TIMEOUT_MAX);
            check(key, value <= settings::TIMEOUT_MAX, format!("is too long; give at most {longest}, or 0s"));
        }
        if let Err(reason) = settings::check_time_zone(&self.time_zone) {
            check("time_zone", false, reason);
        }
        check(
            "stream_buffer",
            self.stream_buffer >= ByteSize::kib(64),
            "is too small to stream a batch; give at least 64KiB".to_owned(),
        );
        problems.extend(admission::problems(self, MEMORY_MIN));
        problems.extend(self.datafusion.problems().into_iter().map(|(key, text)| (format!("datafusion.{key}"), text)));
        problems
    }

    /// How many heavy queries run at a time on this many threads.
    pub(crate) fn concurrent_queries(&self, cpu_threads: usize) -> usize {
        match self.max_concurrent_queries {
            // Two per thread, so that one works while the other waits for files or its client.
            0 => (2 * cpu_threads).max(8),
            set => set,
        }
    }

    /// How many spilled files a merge may read at a time, if there is memory for as many.
    pub(crate) fn merge_fan_in_max(&self) -> usize {
        match self.spill_merge_fan_in {
            0 => usize::MAX,
            set => set,
        }
    }
}

/// Which memory pool shares the budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPoolKind {
    /// Ours: a hard limit, fair between principals and queries.
    #[default]
    Fair,
    /// DataFusion's `FairSpillPool`.
    DatafusionFair,
    /// DataFusion's `GreedyMemoryPool`.
    Greedy,
}

/// How spilled data is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpillCompression {
    /// LZ4: little CPU, a half to a third of the bytes.
    #[default]
    Lz4,
    /// Zstandard: more CPU, fewer bytes. For slow disks.
    Zstd,
    /// Not at all. For disks that are faster than a core compresses.
    None,
}

/// Into how many partitions a query is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partitions {
    /// As many as the data to be read and what is free suggest; at most one per thread of the CPU runtime.
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
