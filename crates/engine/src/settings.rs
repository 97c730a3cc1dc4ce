//! What a session may change, and how each value is checked.
//!
//! One table of names serves `SET`, `SHOW`, Flight SQL session options and the refusal of everything
//! else. DataFusion's own `SET` never runs: it can move a session out of the shared memory budget.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::admission::Limits;
use crate::config::{Config, Partitions};
use crate::error::Error;
use crate::options::Owned;

/// The largest `batch_size` that is accepted, in rows.
pub(crate) const BATCH_SIZE_MAX: usize = 1 << 20;
/// The least memory that a session may leave its queries: what a scan of one small file needs.
const QUERY_MEMORY_MIN: u64 = 1 << 20;

/// The longest name of a schema, in bytes. Sessions keep it.
const NAME_MAX: usize = 1 << 10;

/// The longest timeout that is accepted, a year: a point in time further ahead may be none that a clock has.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(31_557_600);

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
    ("result_cache", "whether results may be kept, and given from what was kept: on or off"),
    ("time_zone", "time zone of timestamps, such as UTC, +02:00 or Europe/Berlin"),
    ("catalog", "the catalog of names without one"),
    ("schema", "the schema of names without one"),
];

/// The settings of one session. Cheap to clone and compare; part of the key of every plan.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Into how many partitions a query is split.
    pub(crate) target_partitions: Partitions,
    /// Rows per batch.
    pub batch_size: usize,
    /// Zero = no limit.
    pub(crate) statement_timeout: Duration,
    /// Bytes; `u64::MAX` = the server's limit.
    pub(crate) query_memory_limit: u64,
    /// Whether the cache of results is used, if there is one.
    pub(crate) result_cache: bool,
    pub(crate) time_zone: String,
    pub(crate) catalog: String,
    pub(crate) schema: String,
    /// The front end's settings by name, as its checks returned them.
    front_end: BTreeMap<&'static str, String>,
}

/// The settings of a new session of some principal, and the bounds within which it may change them.
#[derive(Debug)]
pub(crate) struct Defaults {
    settings: Arc<Settings>,
    front_end: &'static [SettingSpec],
}

impl Defaults {
    pub(crate) fn new(config: &Config, front_end: &'static [SettingSpec], limits: &Limits) -> Self {
        let settings = Settings {
            target_partitions: config.target_partitions,
            batch_size: config.batch_size,
            statement_timeout: limits.statement_timeout,
            query_memory_limit: limits.query_memory_limit,
            result_cache: true,
            time_zone: config.time_zone.clone(),
            catalog: updraft_catalog::CATALOG.to_owned(),
            schema: updraft_catalog::SCHEMA.to_owned(),
            front_end: front_end.iter().map(|spec| (spec.name, spec.default.to_owned())).collect(),
        };
        Self { settings: Arc::new(settings), front_end }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
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
        let hint = lower.strip_prefix("datafusion.").and_then(Owned::find).map_or_else(String::new, refused);
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
            "target_partitions" => settings.target_partitions = value.parse()?,
            "batch_size" => {
                settings.batch_size = value
                    .parse()
                    .ok()
                    .filter(|rows| (1..=BATCH_SIZE_MAX).contains(rows))
                    .ok_or_else(|| format!("give a number of rows from 1 to {BATCH_SIZE_MAX}"))?;
            }
            "statement_timeout" => {
                let timeout = duration(value)?;
                // What the server or the principal has is the most; zero is more than any.
                let max = self.settings.statement_timeout;
                if !max.is_zero() && (timeout.is_zero() || timeout > max) {
                    return Err(format!("a session may take at most {}", humantime::format_duration(max)));
                }
                settings.statement_timeout = timeout;
            }
            "query_memory_limit" => {
                let bytes: ByteSize = value.parse().map_err(|_| "give a size such as 512MiB".to_owned())?;
                let max = self.settings.query_memory_limit;
                if bytes.0 > max {
                    return Err(format!("a session may take at most {}", ByteSize(max)));
                }
                if bytes.0 < QUERY_MEMORY_MIN {
                    return Err(format!("is too small to run a query; give at least {}", ByteSize(QUERY_MEMORY_MIN)));
                }
                settings.query_memory_limit = bytes.0;
            }
            "result_cache" => {
                settings.result_cache = match value.to_ascii_lowercase().as_str() {
                    "on" | "true" => true,
                    "off" | "false" => false,
                    _ => return Err("give on or off".to_owned()),
                };
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
            "schema" if value.len() > NAME_MAX => return Err(format!("give a name of at most {NAME_MAX} bytes")),
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
            "result_cache" => if settings.result_cache { "on" } else { "off" }.to_owned(),
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

/// Why an option of DataFusion cannot be set, and what sets what it is for.
fn refused(option: &Owned) -> String {
    match (option.key(), option.why()) {
        (Some(key @ "engine.memory_limit"), why) => {
            format!("{why}; the operator sets {key}, a session query_memory_limit. ")
        }
        (Some(key), why) => format!("{why}; the operator sets {key}. "),
        (None, why) => format!("{why}. "),
    }
}

/// `30s`, `5m`, or a bare number of milliseconds as PostgreSQL has it.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse() {
        Ok(millis) => Ok(Duration::from_millis(millis)),
        Err(_) => humantime::parse_duration(text),
    };
    parsed.ok().filter(|timeout| *timeout <= TIMEOUT_MAX).ok_or_else(|| {
        let max = humantime::format_duration(TIMEOUT_MAX);
        format!("give a duration such as 30s or 5m, at most {max}; 0 = no limit")
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use updraft_auth::Principal;

    use super::*;
    use crate::admission::{PerPrincipal, PrincipalConfig};

    fn defaults() -> Defaults {
        const WIRE: &[SettingSpec] = &[SettingSpec {
            name: "wire_types",
            doc: "",
            default: "compatible",
            check: |value| if value == "native" { Ok("native".into()) } else { Err("give native".into()) },
        }];
        let config = Config::default();
        let limits = PerPrincipal::limits(&config, 4, 1 << 30);
        Defaults::new(&config, WIRE, limits.others())
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
            ("statement_timeout", "30m"),
            ("statement_timeout", "31m"),
            ("statement_timeout", "0"),
            ("query_memory_limit", "512MiB"),
            ("query_memory_limit", "2GiB"),
            ("query_memory_limit", "1B"),
            ("updraft.result_cache", "off"),
            ("result_cache", "true"),
            ("result_cache", "maybe"),
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
            target_partitions = auto
            cannot set "target_partitions" to '0': `0` is not a number from 1 to 1024 or `auto`
            cannot set "target_partitions" to 'many': `many` is not a number from 1 to 1024 or `auto`
            batch_size = 1024
            cannot set "batch_size" to '-1': give a number of rows from 1 to 1048576
            cannot set "batch_size" to '99999999': give a number of rows from 1 to 1048576
            statement_timeout = 30s
            statement_timeout = 1s 500ms
            cannot set "statement_timeout" to 'soon': give a duration such as 30s or 5m, at most 1year; 0 = no limit
            statement_timeout = 30m
            cannot set "statement_timeout" to '31m': a session may take at most 30m
            cannot set "statement_timeout" to '0': a session may take at most 30m
            query_memory_limit = 536870912B
            cannot set "query_memory_limit" to '2GiB': a session may take at most 1.0 GiB
            cannot set "query_memory_limit" to '1B': is too small to run a query; give at least 1.0 MiB
            result_cache = off
            result_cache = on
            cannot set "result_cache" to 'maybe': give on or off
            time_zone = Europe/Berlin
            cannot set "time_zone" to 'Mars/Olympus': `Mars/Olympus` is not a time zone; give one such as UTC, +02:00 or Europe/Berlin
            cannot set "catalog" to 'other': the catalog is "updraft"
            schema = s
            wire_types = native
            cannot set "wire_types" to 'odd': give native
            setting "datafusion.runtime.memory_limit" cannot be set; memory is shared by all queries; the operator sets engine.memory_limit, a session query_memory_limit. what can be set: target_partitions, batch_size, statement_timeout, query_memory_limit, result_cache, time_zone, catalog, schema, wire_types
            setting "datafusion.catalog.information_schema" cannot be set; there is one catalog, of pinned tables, whose settings are in [catalog]. what can be set: target_partitions, batch_size, statement_timeout, query_memory_limit, result_cache, time_zone, catalog, schema, wire_types"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_session_stays_within_the_limits_of_its_principal() {
        let own = PrincipalConfig {
            statement_timeout: Some(Duration::from_secs(2 * 3600)),
            query_memory_limit: Some(ByteSize::mib(256)),
            ..PrincipalConfig::default()
        };
        let config = Config { principals: [("etl".to_owned(), own)].into(), ..Config::default() };
        let limits = PerPrincipal::limits(&config, 4, 1 << 30);
        let defaults = limits.map(|limits| Defaults::new(&config, &[], limits));
        let mut lines = Vec::new();
        for principal in ["etl", "anyone"].map(Principal::new) {
            let defaults = defaults.of(&principal);
            for (name, value) in [("statement_timeout", "1h"), ("query_memory_limit", "300MiB")] {
                let initial = defaults.value(defaults.settings(), name);
                let set = defaults.with(defaults.settings(), name, value);
                let told = set.map_or_else(|error| error.to_string(), |settings| defaults.value(&settings, name));
                lines.push(format!("{principal}: {initial} -> {told}"));
            }
        }
        expect![[r#"
            etl: 2h -> 1h
            etl: 268435456B -> cannot set "query_memory_limit" to '300MiB': a session may take at most 256.0 MiB
            anyone: 30m -> cannot set "statement_timeout" to '1h': a session may take at most 30m
            anyone: 1073741824B -> 314572800B"#]]
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
