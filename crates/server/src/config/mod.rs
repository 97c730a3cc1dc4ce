//! One configuration, made of the parts that the crates own.
//!
//! Layers, each over the one before: defaults, one TOML file, environment variables (`UPDRAFT__ENGINE__MEMORY_LIMIT`),
//! `--set engine.memory_limit=...`. Everything here works on the JSON schema of [`Config`], so a setting that a crate
//! adds is at once known to every layer, to `config print` and to the reference.
//!
//! - [`layers`]: each source as a tree of values that know where they came from
//! - [`load`]: merge, resolve references, find every problem, make the [`Config`]
//! - [`path`]: key paths; [`schema`]: what may stand at a path; [`problem`]: what is wrong, and what would be right
//! - [`render`]: `config print`, `config/reference.md` and `config/default.toml`
//! - [`server`]: the settings of this crate
//!
//! Never: a default or a rule of another crate's setting.

mod layers;
mod load;
mod path;
mod problem;
mod references;
mod render;
mod schema;
mod server;

pub use layers::Sources;
pub use load::{Loaded, load};
pub use problem::{Problem, Problems};
pub use render::{default_toml, print, reference};
pub use server::{AdminListen, LogFormat, ServerConfig};

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The configuration of a whole server. Defaults serve on loopback, without login and without TLS.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The process: addresses, logs, threads, shutdown.
    pub server: ServerConfig,
    /// The Flight SQL endpoint: transport security, limits of the wire.
    pub flight: updraft_flight::Config,
    /// Who may log in, and how.
    pub auth: updraft_auth::Config,
    /// How queries are planned and run, and what they may use.
    pub engine: updraft_engine::Config,
    /// Which tables there are, and where their files lie.
    pub catalog: updraft_catalog::Config,
    /// The cache of hot tables.
    pub hot: updraft_hot::Config,
}

impl Config {
    /// Every problem that only shows when values are looked at together, as (key path, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let sections = [
            ("server", self.server.problems()),
            ("flight", self.flight.problems()),
            ("auth", self.auth.problems()),
            ("engine", self.engine.problems()),
            ("catalog", self.catalog.problems()),
            ("hot", self.hot.problems()),
            ("hot", self.hot_beside_queries()),
        ];
        sections
            .into_iter()
            .flat_map(|(section, problems)| {
                problems.into_iter().map(move |(path, message)| {
                    let path = if path.is_empty() { section.to_owned() } else { format!("{section}.{path}") };
                    (path, message)
                })
            })
            .collect()
    }

    /// The cache of hot tables is a part of the memory of queries.
    fn hot_beside_queries(&self) -> Vec<(String, String)> {
        let Some(hot) = self.hot.memory_limit.filter(|hot| *hot > ByteSize(0)) else { return Vec::new() };
        let (queries, source) = self.engine.memory_bytes();
        let problem = || {
            let queries = ByteSize(queries);
            format!("is {hot}, more than the memory of queries, of which it is a part: {queries} ({source}); give less")
        };
        (hot.0 > queries).then(|| ("memory_limit".to_owned(), problem())).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_larger_than_the_memory_of_queries_is_refused_with_both_numbers() {
        let mut config = Config::default();
        config.engine.memory_limit = Some(ByteSize::gib(2));
        config.hot.memory_limit = Some(ByteSize::gib(2));
        assert_eq!(config.problems(), []);
        config.hot.memory_limit = Some(ByteSize::gib(3));
        let problems = config.problems();
        let [(key, text)] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(key, "hot.memory_limit");
        assert!(text.contains("3.0 GiB") && text.contains("2.0 GiB (engine.memory_limit)"), "{text}");
    }
}
