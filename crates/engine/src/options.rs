//! DataFusion's options in the config: passed on, or refused with what to use instead.
//!
//! Everything is passed on but what a setting of Updraft governs, what would leave the memory budget, what
//! clients are told is otherwise, and what makes queries fail or wait for ever. [`OWNED`] is the whole list.

use std::collections::BTreeMap;
use std::fmt;

use datafusion::common::Result;
use datafusion::config::ConfigOptions;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::Error;

/// Of all names, those at least this similar to a wrong one are suggested.
const SIMILARITY_MIN: f64 = 0.6;

/// Sets several others, so it goes first: what is said of one of them alone holds.
const FIRST: &str = "optimizer.enable_dynamic_filter_pushdown";

/// An option that is not passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    /// Its name; with a dot at its end, all options below it.
    name: &'static str,
    why: &'static str,
    /// What to set instead.
    key: Option<&'static str>,
}

const fn owned(name: &'static str, why: &'static str, key: &'static str) -> Owned {
    Owned { name, why, key: Some(key) }
}

const fn closed(name: &'static str, why: &'static str) -> Owned {
    Owned { name, why, key: None }
}

/// Options that may grow without end outside of the memory budget, and the most that each may be.
const AT_MOST: &[(&str, u64)] = &[
    ("execution.sort_in_place_threshold_bytes", 64 << 20),
    ("optimizer.hash_join_inlist_pushdown_max_distinct_values", 100_000),
    ("optimizer.hash_join_inlist_pushdown_max_size", 16 << 20),
];

/// An option comes before the section it is in.
const OWNED: &[Owned] = &[
    owned("runtime.memory_limit", "memory is shared by all queries", "engine.memory_limit"),
    owned("runtime.temp_directory", "spill folders are shared by all queries", "engine.spill_directories"),
    owned("runtime.max_temp_directory_size", "spill space is shared by all queries", "engine.spill_limit"),
    owned("runtime.max_spill_merge_fan_in", "all queries spill alike", "engine.spill_merge_fan_in"),
    owned("runtime.metadata_cache_limit", "footers are cached by the catalog", "catalog.metadata_cache"),
    owned("runtime.file_statistics_cache_limit", "statistics are cached by the catalog", "catalog.metadata_cache"),
    owned("runtime.list_files_cache_limit", "files are listed by the catalog", "catalog.list_ttl"),
    owned("runtime.list_files_cache_ttl", "files are listed by the catalog", "catalog.list_ttl"),
    closed("runtime.", "what queries share is not DataFusion's to govern"),
    closed("catalog.", "there is one catalog, of pinned tables, whose settings are in [catalog]"),
    owned("execution.target_partitions", "sessions can change it", "engine.target_partitions"),
    owned("execution.planning_concurrency", "it follows the partitions", "engine.target_partitions"),
    owned("execution.batch_size", "sessions can change it", "engine.batch_size"),
    owned("execution.time_zone", "sessions can change it", "engine.time_zone"),
    owned("execution.spill_compression", "it belongs to spilling", "engine.spill_compression"),
    closed("execution.enforce_batch_size_in_joins", "it is always on: else a join may make batches of any size"),
    closed("execution.max_spill_file_size_bytes", "with any other value exchanges that spill can wait for ever"),
    closed("optimizer.enable_piecewise_merge_join", "planning with it panics"),
    closed(
        "execution.parquet.max_predicate_cache_size",
        "it would be memory outside of the budget; 8 MiB a reader are set",
    ),
    owned("sql_parser.recursion_limit", "text is checked before it is parsed", "engine.sql_depth_max"),
    closed("sql_parser.dialect", "Updraft parses one dialect, which clients are told"),
    closed("sql_parser.enable_ident_normalization", "clients are told that names without quotes are lower case"),
    closed("sql_parser.default_null_ordering", "clients are told that NULLs sort last"),
];

impl Owned {
    /// The entry for the option `name`, which has no `datafusion.` before it.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        let is = |owned: &&Self| owned.name == name || (owned.name.ends_with('.') && name.starts_with(owned.name));
        OWNED.iter().find(is)
    }

    /// What to set instead.
    pub(crate) fn key(&self) -> Option<&'static str> {
        self.key
    }

    /// Why it is not passed on.
    pub(crate) fn why(&self) -> &'static str {
        self.why
    }
}

/// Options of DataFusion by name, without `datafusion.` before it. They may be written as tables
/// (`execution.parquet.pruning = true`) or with names in quotes (`"execution.parquet.pruning" = true`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatafusionOptions(BTreeMap<String, Given>);

/// A value as text, and the key path under which it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    path: String,
    value: String,
}

impl DatafusionOptions {
    /// All that is wrong, as (key path below this table, what is wrong and what would be right).
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let mut options = ConfigOptions::new();
        let names: Vec<String> = options.entries().into_iter().filter_map(|entry| own_name(&entry.key)).collect();
        let problem = |(name, given): (&String, &Given)| {
            let text = if let Some(Owned { why, key, .. }) = Owned::find(name) {
                match key {
                    Some(key) => format!("is not passed on to DataFusion: {why}; set `{key}`"),
                    None => format!("is not passed on to DataFusion: {why}"),
                }
            } else if !names.contains(name) {
                let similarity = |known: &&String| strsim::normalized_damerau_levenshtein(name, known);
                match names.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b))) {
                    Some(nearest) if similarity(&nearest) >= SIMILARITY_MIN => {
                        format!("is no option of DataFusion; did you mean `engine.datafusion.{nearest}`?")
                    }
                    _ => "is no option of DataFusion; information_schema.df_settings lists them".to_owned(),
                }
            } else if let Err(error) = set(&mut options, name, given) {
                format!("cannot be `{}`: {}", given.value, Error::from(error))
            } else {
                let most = AT_MOST.iter().find(|(bounded, _)| bounded == name)?.1;
                given.value.parse::<u64>().ok().filter(|value| *value > most)?;
                format!("cannot be `{}`: it would be memory outside of the budget; give at most {most}", given.value)
            };
            Some((given.path.clone(), text))
        };
        self.0.iter().filter_map(problem).collect()
    }

    /// Sets them all.
    ///
    /// # Errors
    /// What DataFusion says of a value, which [`Self::problems`] has said before.
    pub(crate) fn apply(&self, options: &mut ConfigOptions) -> Result<()> {
        let (first, rest): (Vec<_>, Vec<_>) = self.0.iter().partition(|(name, _)| *name == FIRST);
        first.into_iter().chain(rest).try_for_each(|(name, given)| set(options, name, given))
    }
}

fn set(options: &mut ConfigOptions, name: &str, given: &Given) -> Result<()> {
    options.set(&format!("datafusion.{name}"), &given.value)
}

fn own_name(key: &str) -> Option<String> {
    key.strip_prefix("datafusion.").map(str::to_owned)
}

impl JsonSchema for DatafusionOptions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DatafusionOptions".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": true })
    }
}

impl Serialize for DatafusionOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, given)| (name, &given.value)))
    }
}

impl<'de> Deserialize<'de> for DatafusionOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut options = BTreeMap::new();
        for (key, tree) in BTreeMap::<String, Tree>::deserialize(deserializer)? {
            tree.flatten(&key, quoted(&key), &mut options).map_err(D::Error::custom)?;
        }
        Ok(Self(options))
    }
}

/// Tables within tables, with plain values at the ends.
enum Tree {
    Table(BTreeMap<String, Tree>),
    Value(String),
}

impl Tree {
    fn flatten(self, name: &str, path: String, options: &mut BTreeMap<String, Given>) -> Result<(), String> {
        match self {
            Self::Value(value) => match options.insert(name.to_owned(), Given { path, value }) {
                Some(before) => Err(format!("`{name}` is given twice, once in quotes (as {})", before.path)),
                None => Ok(()),
            },
            Self::Table(table) => table.into_iter().try_for_each(|(key, tree)| {
                tree.flatten(&format!("{name}.{key}"), format!("{path}.{}", quoted(&key)), options)
            }),
        }
    }
}

/// A key as it is written in a key path.
fn quoted(key: &str) -> String {
    if key.contains('.') { format!("\"{key}\"") } else { key.to_owned() }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, `true` or `false`")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Value(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Value(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Value(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Value(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Value(value.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((key, tree)) = map.next_entry()? {
                    table.insert(key, tree);
                }
                Ok(Tree::Table(table))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn options(text: &str) -> Result<DatafusionOptions, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_written_as_tables_or_in_quotes() {
        let text = r#"{ "execution": { "parquet": { "pushdown_filters": true }, "parquet.max_in_list_size": 100 },
            "optimizer.prefer_hash_join": "false", "execution.skip_partial_aggregation_probe_ratio_threshold": 0.5 }"#;
        let given = options(text).expect("four options");
        assert_eq!(given.problems(), []);
        let mut set = ConfigOptions::new();
        given.apply(&mut set).expect("they have no problems");
        assert!(set.execution.parquet.pushdown_filters && !set.optimizer.prefer_hash_join);
        assert_eq!(set.execution.parquet.max_in_list_size, 100);
        assert_eq!(set.execution.skip_partial_aggregation_probe_ratio_threshold, 0.5);
        let again = options(&serde_json::to_string(&given).expect("it can be written")).expect("and read");
        let names = |options: &DatafusionOptions| options.0.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&again), names(&given));
        let twice = r#"{ "execution": { "coalesce_batches": true }, "execution.coalesce_batches": false }"#;
        expect![["`execution.coalesce_batches` is given twice, once in quotes (as execution.coalesce_batches)"]]
            .assert_eq(&options(twice).expect_err("two values"));
        assert!(options(r#"{ "execution": { "batch_size": [1] } }"#).is_err(), "no option is a list");
    }

    #[test]
    fn what_stands_for_several_yields_to_what_stands_for_one() {
        let text = r#"{ "optimizer": { "enable_dynamic_filter_pushdown": false,
            "enable_aggregate_dynamic_filter_pushdown": true } }"#;
        let mut set = ConfigOptions::new();
        options(text).expect("two options").apply(&mut set).expect("they have no problems");
        assert!(set.optimizer.enable_aggregate_dynamic_filter_pushdown);
        assert!(!set.optimizer.enable_join_dynamic_filter_pushdown);
    }

    #[test]
    fn what_leaves_the_budget_is_refused_with_what_to_use_instead() {
        let runtime = r#"{ "memory_limit": "1T", "temp_directory": "/", "max_temp_directory_size": "1T", "new": 1 }"#;
        let text = format!(
            r#"{{ "runtime": {runtime}, "execution": {{ "batch_size": 1, "enforce_batch_size_in_joins": false,
            "parquet": {{ "pushdown_filter": true, "pruning": "maybe" }} }}, "execution.coalesce_batches": "x",
            "catalog.location": "/etc", "nonsense": true, "optimizer": {{ "hash_join_inlist_pushdown_max_size": 10000000000,
            "hash_join_inlist_pushdown_max_distinct_values": 1000 }} }}"#
        );
        let problems = options(&text).expect("it can be read").problems();
        let lines: Vec<_> = problems.into_iter().map(|(path, text)| format!("{path} {text}")).collect();
        expect![[r#"
            "catalog.location" is not passed on to DataFusion: there is one catalog, of pinned tables, whose settings are in [catalog]
            execution.batch_size is not passed on to DataFusion: sessions can change it; set `engine.batch_size`
            "execution.coalesce_batches" cannot be `x`: provided string was not `true` or `false`
            execution.enforce_batch_size_in_joins is not passed on to DataFusion: it is always on: else a join may make batches of any size
            execution.parquet.pruning cannot be `maybe`: provided string was not `true` or `false`
            execution.parquet.pushdown_filter is no option of DataFusion; did you mean `engine.datafusion.execution.parquet.pushdown_filters`?
            nonsense is no option of DataFusion; information_schema.df_settings lists them
            optimizer.hash_join_inlist_pushdown_max_size cannot be `10000000000`: it would be memory outside of the budget; give at most 16777216
            runtime.max_temp_directory_size is not passed on to DataFusion: spill space is shared by all queries; set `engine.spill_limit`
            runtime.memory_limit is not passed on to DataFusion: memory is shared by all queries; set `engine.memory_limit`
            runtime.new is not passed on to DataFusion: what queries share is not DataFusion's to govern
            runtime.temp_directory is not passed on to DataFusion: spill folders are shared by all queries; set `engine.spill_directories`"#]].assert_eq(&lines.join("\n"));
    }

    #[test]
    fn every_refused_option_is_one() {
        let own = ConfigOptions::new().entries();
        let runtime = datafusion::execution::runtime_env::RuntimeEnvBuilder::new().entries();
        let names: Vec<String> = own.into_iter().chain(runtime).filter_map(|entry| own_name(&entry.key)).collect();
        let bounded = AT_MOST.iter().map(|(name, _)| name);
        for name in OWNED.iter().map(|owned| &owned.name).chain(bounded) {
            assert!(names.iter().any(|known| known == name || known.starts_with(*name)), "{name}");
        }
        let open = names.iter().filter(|name| name.starts_with("runtime.") && Owned::find(name).is_none());
        assert_eq!(open.count(), 0, "all of the runtime is shared");
    }
}
