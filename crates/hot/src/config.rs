//! What the hot-table cache may use, and what it starts with.

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the hot-table cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Memory for decoded columns of Parquet tables that are asked for again and again, such as `8GiB`. It is a part of
    /// `engine.memory_limit`: queries that need it get it back. Unset = half of that. `0B` turns the cache off, and every
    /// query reads its files. Raise it when `hit_rate` in `/status` is low and `engine.memory_limit` leaves room beside
    /// what queries need.
    #[schemars(with = "Option<String>")]
    pub memory_limit: Option<ByteSize>,
    /// Tables (`name` or `schema.name`) to load before the server is ready. It does not start when one does not exist, or
    /// does not fit into `memory_limit` beside the others. Name those whose first query should be as fast as the later ones.
    pub preload: Vec<String>,
}

/// Of the memory of queries, what the cache may have when the config does not say.
const SHARE: u64 = 2;

impl Config {
    /// Bytes that the cache may have, where queries have `memory`.
    pub fn memory_bytes(&self, memory: u64) -> u64 {
        self.memory_limit.map_or(memory / SHARE, |limit| limit.0)
    }

    /// All that is wrong with the settings: key path below `hot`, and what would be right.
    pub fn problems(&self) -> Vec<(String, String)> {
        let empty = self.preload.iter().enumerate().filter(|(_, name)| name.trim().is_empty());
        let mut problems: Vec<_> = empty
            .map(|(index, _)| {
                (format!("preload[{index}]"), "is empty; give the name of a table, or remove the entry".to_owned())
            })
            .collect();
        if self.memory_limit == Some(ByteSize(0)) && !self.preload.is_empty() {
            let problem = "names tables, but the cache is off; set hot.memory_limit, or name none";
            problems.push(("preload".to_owned(), problem.to_owned()));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_memory_by_default_and_empty_names_are_reported() {
        assert_eq!(Config::default().memory_bytes(1 << 30), 1 << 29);
        let off = Config { memory_limit: Some(ByteSize(0)), ..Config::default() };
        assert_eq!(off.memory_bytes(1 << 30), 0);
        let config = Config { preload: vec!["orders".into(), " ".into()], ..off };
        let keys = |config: &Config| config.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(&config), ["preload[1]", "preload"]);
        assert_eq!(keys(&Config { memory_limit: Some(ByteSize::gib(1)), ..config }), ["preload[1]"]);
        assert!(keys(&Config::default()).is_empty());
    }
}
