//! What the hot-table cache may use, and what it starts with.

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the hot-table cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Memory (bytes) for decoded columns of hot tables. `0` turns the cache off: every query reads its files. Raise it
    /// when the same tables are queried again and again and memory is left over beside `engine.memory_limit`.
    #[schemars(with = "String")]
    pub memory_limit: ByteSize,
    /// Tables (`name` or `schema.name`) to load when the server starts, in this order, as long as `memory_limit` allows.
    /// Name those whose first query should be as fast as the later ones.
    pub preload: Vec<String>,
}

impl Config {
    /// All that is wrong with the settings: key path below `hot`, and what would be right.
    pub fn problems(&self) -> Vec<(String, String)> {
        let empty = self.preload.iter().enumerate().filter(|(_, name)| name.trim().is_empty());
        empty
            .map(|(index, _)| {
                (format!("preload[{index}]"), "is empty; give the name of a table, or remove the entry".to_owned())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_by_default_and_empty_names_are_reported() {
        assert_eq!(Config::default().memory_limit, ByteSize(0));
        let config = Config { preload: vec!["orders".into(), " ".into()], ..Config::default() };
        let keys: Vec<String> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["preload[1]"]);
    }
}
