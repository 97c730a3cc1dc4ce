//! What a session may change, and how each value is checked.
//!
//! One table of names serves `SET`, `SHOW`, Flight SQL session options and the refusal of everything
//! else. DataFusion's own `SET` never runs: it can move a session out of the shared memory budget.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use bytesize::ByteSize;

use crate::config::{Config, Partitions};
use crate::error::Error;

/// The largest `batch_size` that is accepted, in rows.
pub(crate) const BATCH_SIZE_MAX: usize = 1 << 20;

/// A setting that a front end adds to those of the engine, such as how results are encoded.
#[derive(Debug, Clone, Copy)]
pub struct SettingSpec {
    /// Its name in `SET name = value`.
    pub name: &'static str,
    /// What it does and which values it takes, in one line.
    pub doc: &'static str,
    /// Its value in a new session.
    pub default: &'static str,
    /// Checks a value and returns it in the form it is stored in.
    pub check: fn(&str) -> Result<String, String>,
}

/// The engine's own settings. `apply` has one arm for each.
const ENGINE_SETTINGS: &[(&str, &str)] = &[
    ("target_partitions", "into how many partitions a query is split: a number or auto"),
    ("batch_size", "rows per batch between operators"),
    ("statement_timeout", "how long a statement may take, such as 30s; 0 = no limit"),
    ("query_memory_limit", "the most memory a query may reserve, such as 512MiB; not above the server's"),
    ("time_zone", "time zone of timestamps, such as UTC, +02:00 or Europe/Berlin"),
    ("catalog", "the catalog of names without one"),
    ("schema", "the schema of names without one"),
];

/// The settings of one session. Cheap to clone and compare; part of the key of every plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Into how many partitions a query is split.
    pub(crate) target_partitions: usize,
    /// Rows per batch.
    pub(crate) batch_size: usize,
    /// Zero = no limit.
    pub(crate) statement_timeout: Duration,
    /// Bytes; `u64::MAX` = the server's limit.
    pub(crate) query_memory_limit: u64,
    pub(crate) time_zone: String,
    pub(crate) catalog: String,
    pub(crate) schema: String,
    /// The front end's settings by name, as its checks returned them.
    front_end: BTreeMap<&'static str, String>,
}

/// The settings of a new session, and the bounds within which a session may change them.
#[derive(Debug)]
pub(crate) struct Defaults {
    settings: Settings,
    front_end: &'static [SettingSpec],
    cpu_threads: usize,
    query_memory_max: u64,
}

impl Defaults {
    pub(crate) fn new(
        config: &Config,
        front_end: &'static [SettingSpec],
        cpu_threads: usize,
        memory_limit: u64,
    ) -> Self {
        let query_memory_max = config.query_memory_limit.map_or(memory_limit, |limit| limit.0);
        let settings = Settings {
            target_partitions: partitions(config.target_partitions, cpu_threads),
            batch_size: config.batch_size,
            statement_timeout: config.statement_timeout,
            query_memory_limit: query_memory_max,
            time_zone: config.time_zone.clone(),
            catalog: updraft_catalog::CATALOG.to_owned(),
            schema: updraft_catalog::SCHEMA.to_owned(),
            front_end: front_end.iter().map(|spec| (spec.name, spec.default.to_owned())).collect(),
        };
        Self { settings, front_end, cpu_threads, query_memory_max }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `settings` with `name` set to `value`. The name is one of [`Self::known`], in any case, with or
    /// without the prefix `engine.`; DataFusion's and PostgreSQL's names of the same things also work.
    ///
    /// # Errors
    /// `Unsupported` for a name that cannot be set, with the list of those that can; `Invalid` for a value.
    pub(crate) fn with(&self, settings: &Settings, name: &str, value: &str) -> Result<Settings, Error> {
        let name = self.canonical(name)?;
        let mut changed = settings.clone();
        self.apply(&mut changed, name, value.trim())
            .map_err(|reason| Error::Invalid(format!("cannot set \"{name}\" to '{value}': {reason}")))?;
        Ok(changed)
    }

    /// `settings` with `name` back at the server's value.
    ///
    /// # Errors
    /// `Unsupported` as in [`Self::with`].
    pub(crate) fn without(&self, settings: &Settings, name: &str) -> Result<Settings, Error> {
        let name = self.canonical(name)?;
        let default = self.value(&self.settings, name);
        self.with(settings, name, &default)
    }

    /// All names, their documentation, and their values in `settings`, in order of listing.
    pub(crate) fn show(&self, settings: &Settings) -> Vec<(&'static str, String, &'static str)> {
        self.known().map(|(name, doc)| (name, self.value(settings, name), doc)).collect()
    }

    /// The canonical form of a name.
    ///
    /// # Errors
    /// `Unsupported`, with the list of what can be set.
    pub(crate) fn canonical(&self, name: &str) -> Result<&'static str, Error> {
        let lower = name.trim().to_ascii_lowercase();
        let short = ["datafusion.execution.", "engine.", "updraft.", "session."]
            .iter()
            .find_map(|prefix| lower.strip_prefix(prefix))
            .unwrap_or(&lower);
        let short = match short {
            "timezone" | "time zone" => "time_zone",
            "search_path" | "current_schema" => "schema",
            "current_catalog" => "catalog",
            other => other,
        };
        if let Some((name, _)) = self.known().find(|(known, _)| *known == short) {
            return Ok(name);
        }
        let known: Vec<_> = self.known().map(|(name, _)| name).collect();
        let hint = if lower.starts_with("datafusion.runtime.") {
            "memory and spilling are shared by all queries; the operator sets engine.memory_limit and \
             engine.spill_limit in the server's config. "
        } else {
            ""
        };
        Err(Error::Unsupported(format!(
            "setting \"{name}\" cannot be set; {hint}what can be set: {}",
            known.join(", ")
        )))
    }

    fn known(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let front_end = self.front_end.iter().map(|spec| (spec.name, spec.doc));
        ENGINE_SETTINGS.iter().copied().chain(front_end)
    }

    fn apply(&self, settings: &mut Settings, name: &'static str, value: &str) -> Result<(), String> {
        match name {
            "target_partitions" => {
                settings.target_partitions = partitions(value.parse()?, self.cpu_threads);
            }
            "batch_size" => {
                settings.batch_size = value
                    .parse()
                    .ok()
                    .filter(|rows| (1..=BATCH_SIZE_MAX).contains(rows))
                    .ok_or_else(|| format!("give a number of rows from 1 to {BATCH_SIZE_MAX}"))?;
            }
            "statement_timeout" => settings.statement_timeout = duration(value)?,
            "query_memory_limit" => {
                let bytes: ByteSize = value.parse().map_err(|_| "give a size such as 512MiB".to_owned())?;
                if bytes.0 > self.query_memory_max {
                    let max = ByteSize(self.query_memory_max);
                    return Err(format!("a session may take at most {max}"));
                }
                settings.query_memory_limit = bytes.0;
            }
            "time_zone" => {
                check_time_zone(value)?;
                settings.time_zone = value.to_owned();
            }
            "catalog" => {
                if value != updraft_catalog::CATALOG {
                    return Err(format!("the catalog is \"{}\"", updraft_catalog::CATALOG));
                }
                settings.catalog = value.to_owned();
            }
            "schema" => settings.schema = value.to_owned(),
            other => {
                let spec = self.front_end.iter().find(|spec| spec.name == other);
                let spec = spec.expect("the name came from `canonical`, which knows only these");
                settings.front_end.insert(spec.name, (spec.check)(value)?);
            }
        }
        Ok(())
    }

    fn value(&self, settings: &Settings, name: &str) -> String {
        match name {
            "target_partitions" => settings.target_partitions.to_string(),
            "batch_size" => settings.batch_size.to_string(),
            "statement_timeout" => humantime::format_duration(settings.statement_timeout).to_string(),
            "query_memory_limit" => format!("{}B", settings.query_memory_limit),
            "time_zone" => settings.time_zone.clone(),
            "catalog" => settings.catalog.clone(),
            "schema" => settings.schema.clone(),
            other => settings.front_end(other).to_owned(),
        }
    }
}

impl Settings {
    /// The value of a setting of the front end; empty when it did not declare one of that name.
    pub fn front_end(&self, name: &str) -> &str {
        self.front_end.get(name).map_or("", String::as_str)
    }

    /// The schema of names without one.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The catalog of names without one.
    pub fn catalog(&self) -> &str {
        &self.catalog
    }

    /// A number that differs, but for chance, when any setting differs.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Whether Arrow understands `zone`.
///
/// # Errors
/// What would be right.
pub(crate) fn check_time_zone(zone: &str) -> Result<(), String> {
    zone.parse::<datafusion::arrow::array::timezone::Tz>()
        .map(drop)
        .map_err(|_| format!("`{zone}` is not a time zone; give one such as UTC, +02:00 or Europe/Berlin"))
}

fn partitions(partitions: Partitions, cpu_threads: usize) -> usize {
    match partitions {
        Partitions::Auto => cpu_threads,
        Partitions::Count(count) => count,
    }
}

/// `30s`, `5m`, or a bare number of milliseconds as PostgreSQL has it.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(millis) = text.parse() {
        return Ok(Duration::from_millis(millis));
    }
    humantime::parse_duration(text).map_err(|_| "give a duration such as 30s or 5m; 0 = no limit".to_owned())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn defaults() -> Defaults {
        const WIRE: &[SettingSpec] = &[SettingSpec {
            name: "wire_types",
            doc: "",
            default: "compatible",
            check: |value| if value == "native" { Ok("native".into()) } else { Err("give native".into()) },
        }];
        Defaults::new(&Config::default(), WIRE, 4, 1 << 30)
    }

    #[test]
    fn settings_are_checked_and_shown() {
        let defaults = defaults();
        let mut lines = Vec::new();
        for (name, value) in [
            ("target_partitions", "8"),
            ("target_partitions", "auto"),
            ("target_partitions", "0"),
            ("target_partitions", "many"),
            ("datafusion.execution.batch_size", "1024"),
            ("engine.batch_size", "-1"),
            ("BATCH_SIZE", "99999999"),
            ("statement_timeout", "30s"),
            ("statement_timeout", "1500"),
            ("statement_timeout", "soon"),
            ("query_memory_limit", "512MiB"),
            ("query_memory_limit", "2GiB"),
            ("timezone", "Europe/Berlin"),
            ("time_zone", "Mars/Olympus"),
            ("catalog", "other"),
            ("schema", "s"),
            ("wire_types", "native"),
            ("wire_types", "odd"),
            ("datafusion.runtime.memory_limit", "1T"),
            ("datafusion.catalog.information_schema", "false"),
        ] {
            lines.push(match defaults.with(defaults.settings(), name, value) {
                Ok(settings) => {
                    let name = defaults.canonical(name).expect("it was just set");
                    format!("{name} = {}", defaults.value(&settings, name))
                }
                Err(error) => error.to_string(),
            });
        }
        expect![[r#"
            target_partitions = 8
            target_partitions = 4
            cannot set "target_partitions" to '0': `0` is not a number from 1 to 1024 or `auto`
            cannot set "target_partitions" to 'many': `many` is not a number from 1 to 1024 or `auto`
            batch_size = 1024
            cannot set "batch_size" to '-1': give a number of rows from 1 to 1048576
            cannot set "batch_size" to '99999999': give a number of rows from 1 to 1048576
            statement_timeout = 30s
            statement_timeout = 1s 500ms
            cannot set "statement_timeout" to 'soon': give a duration such as 30s or 5m; 0 = no limit
            query_memory_limit = 536870912B
            cannot set "query_memory_limit" to '2GiB': a session may take at most 1.0 GiB
            time_zone = Europe/Berlin
            cannot set "time_zone" to 'Mars/Olympus': `Mars/Olympus` is not a time zone; give one such as UTC, +02:00 or Europe/Berlin
            cannot set "catalog" to 'other': the catalog is "updraft"
            schema = s
            wire_types = native
            cannot set "wire_types" to 'odd': give native
            setting "datafusion.runtime.memory_limit" cannot be set; memory and spilling are shared by all queries; the operator sets engine.memory_limit and engine.spill_limit in the server's config. what can be set: target_partitions, batch_size, statement_timeout, query_memory_limit, time_zone, catalog, schema, wire_types
            setting "datafusion.catalog.information_schema" cannot be set; what can be set: target_partitions, batch_size, statement_timeout, query_memory_limit, time_zone, catalog, schema, wire_types"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_reset_gives_back_the_servers_value() {
        let defaults = defaults();
        for (name, value, _) in defaults.show(defaults.settings()) {
            let changed = match name {
                "target_partitions" => "7",
                "statement_timeout" => "1s",
                "query_memory_limit" => "64MiB",
                "time_zone" => "+01:00",
                "wire_types" => "native",
                "batch_size" => "10",
                "schema" => "other",
                _ => continue,
            };
            let settings = defaults.with(defaults.settings(), name, changed).expect("a good value");
            assert_ne!(settings.fingerprint(), defaults.settings().fingerprint(), "{name}");
            if name == "wire_types" {
                continue; // its check refuses its own default, on purpose of the test above
            }
            let back = defaults.without(&settings, name).expect("a known name");
            assert_eq!(defaults.value(&back, name), value);
        }
    }
}
