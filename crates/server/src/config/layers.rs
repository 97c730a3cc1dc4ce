//! The sources of a configuration, each as a tree of values that know where they came from.

use std::path::PathBuf;

use config::{Map, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::path::{ENV_PREFIX, KeyPath, Part};
use super::problem::Problem;
use super::schema::{self, Child, Node};

/// Where a configuration is read from. [`Sources::from_process`] is what the binary uses.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file, if one is named.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not start with `UPDRAFT__` only serve `${env:NAME}` references.
    pub env: Vec<(String, String)>,
    /// `--set`: `key.path=value`, later ones over earlier ones.
    pub set: Vec<String>,
    /// `--data`: folders that are added to `catalog.data`.
    pub data: Vec<String>,
    /// `--listen`: the same as `server.listen`.
    pub listen: Option<String>,
}

impl Sources {
    /// Nothing but the environment of this process.
    pub fn from_process() -> Self {
        let utf8 = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self { env: std::env::vars_os().filter_map(utf8).collect(), ..Self::default() }
    }
}

/// One source, as the `config` crate merges it.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(Map<String, Value>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// The TOML file. A syntax error does not hide what else is wrong: the rest of the file is read as far as it can be.
pub(super) fn file(path: &std::path::Path, problems: &mut Vec<Problem>) -> Layer {
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(Problem { path: String::new(), origin: name, message: format!("cannot be read: {error}") });
            return Layer::default();
        }
    };
    let line = |offset: usize| text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let origin = error.span().map_or_else(|| name.clone(), |span| format!("{name}:{}", line(span.start)));
        problems.push(Problem { path: String::new(), origin, message: error.message().to_owned() });
    }
    let origin = |offset: usize| format!("{name}:{}", line(offset));
    Layer(toml_table(table.get_ref(), &origin))
}

/// Environment variables that start with `UPDRAFT__`.
pub(super) fn environment(env: &[(String, String)], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    let mut settings: Vec<_> = env.iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    settings.sort();
    for (name, text) in settings {
        match KeyPath::from_env(name) {
            Some(path) => layer.insert(&path, text, name, problems),
            None => continue,
        }
    }
    layer
}

/// `--set key=value` and the flags that stand for one.
pub(super) fn flags(sources: &Sources, problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for assignment in &sources.set {
        let parsed = assignment
            .split_once('=')
            .ok_or_else(|| format!("`{assignment}` has no `=`; write it as `engine.memory_limit=2GiB`"))
            .and_then(|(path, text)| Ok((KeyPath::parse(path)?, text)));
        match parsed {
            Ok((path, text)) => layer.insert(&path, text, "--set", problems),
            Err(message) => problems.push(Problem { path: String::new(), origin: "--set".to_owned(), message }),
        }
    }
    if let Some(listen) = &sources.listen {
        let path = KeyPath::default().key("server").key("listen");
        layer.insert(&path, listen, "--listen", problems);
    }
    layer
}

impl Layer {
    fn insert(&mut self, path: &KeyPath, text: &str, origin: &str, problems: &mut Vec<Problem>) {
        let value = match schema::at(path) {
            Child::Known(node) => coerce(text, node, origin),
            Child::Free => Ok(guess(text, origin)),
            // An unknown key is reported with the others, once all layers are merged.
            Child::Unknown => Ok(string(text, origin)),
        };
        let value = match value {
            Ok(value) => value,
            Err(message) => {
                problems.push(Problem { path: path.to_string(), origin: origin.to_owned(), message });
                return;
            }
        };
        let mut keys = Vec::new();
        for part in &path.0 {
            match part {
                Part::Key(key) => keys.push(key.as_str()),
                Part::Index(_) => {
                    let message = "an item of a list cannot be set alone; set the whole list".to_owned();
                    problems.push(Problem { path: path.to_string(), origin: origin.to_owned(), message });
                    return;
                }
            }
        }
        let Some((last, parents)) = keys.split_last() else { return };
        let mut table = &mut self.0;
        for key in parents {
            let below = table.entry((*key).to_owned()).or_insert_with(|| table_value(Map::new(), origin));
            if !matches!(below.kind, ValueKind::Table(_)) {
                *below = table_value(Map::new(), origin);
            }
            match &mut below.kind {
                ValueKind::Table(next) => table = next,
                _ => return,
            }
        }
        table.insert((*last).to_owned(), value);
    }
}

/// Text as the type that the schema has at this place. What does not fit stays text, so that the type error names it.
pub(super) fn coerce(text: &str, node: Node<'_>, origin: &str) -> Result<Value, String> {
    let with = |kind: ValueKind| Ok(Value::new(Some(&origin.to_owned()), kind));
    let trimmed = text.trim();
    if trimmed.is_empty() && node.is("null") && !node.is("array") {
        return with(ValueKind::Nil);
    }
    if node.is("boolean")
        && let Ok(boolean) = trimmed.parse::<bool>()
    {
        return with(ValueKind::Boolean(boolean));
    }
    if (node.is("integer") || node.is("number")) && !node.is("string") {
        if let Ok(integer) = trimmed.replace('_', "").parse::<i64>() {
            return with(ValueKind::I64(integer));
        }
        if let Ok(number) = trimmed.parse::<f64>() {
            return with(ValueKind::Float(number));
        }
    }
    if (node.is("array") && trimmed.starts_with('[')) || (node.is("object") && trimmed.starts_with('{')) {
        return toml_value(trimmed, origin);
    }
    if node.is("array") && !node.is("string") {
        let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items: Result<Vec<Value>, String> = items
            .map(|item| match node.items() {
                Some(items) => coerce(item, items, origin),
                None => Ok(guess(item, origin)),
            })
            .collect();
        return with(ValueKind::Array(items?));
    }
    Ok(string(text, origin))
}

/// Text of which the schema says nothing: a list or table when it is written as one, text otherwise.
fn guess(text: &str, origin: &str) -> Value {
    match text.trim().chars().next() {
        Some('[' | '{') => toml_value(text.trim(), origin).unwrap_or_else(|_| string(text, origin)),
        _ => string(text, origin),
    }
}

fn string(text: &str, origin: &str) -> Value {
    Value::new(Some(&origin.to_owned()), ValueKind::String(text.to_owned()))
}

fn table_value(table: Map<String, Value>, origin: &str) -> Value {
    Value::new(Some(&origin.to_owned()), ValueKind::Table(table))
}

fn toml_value(text: &str, origin: &str) -> Result<Value, String> {
    match DeValue::parse(text) {
        Ok(value) => Ok(from_toml(&value, &|_| origin.to_owned())),
        Err(error) => Err(format!("`{text}` is not a TOML value: {}", error.message())),
    }
}

fn toml_table(table: &DeTable<'_>, origin: &dyn Fn(usize) -> String) -> Map<String, Value> {
    table
        .iter()
        .map(|(key, value)| {
            // A value's own span starts after `=`; the key's is where a person looks.
            let here = key.span().start;
            let value = match value.get_ref() {
                DeValue::Table(_) | DeValue::Array(_) => from_toml(value, origin),
                _ => from_toml(value, &|_| origin(here)),
            };
            (key.get_ref().clone().into_owned(), value)
        })
        .collect()
}

fn from_toml(value: &Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> String) -> Value {
    let kind = match value.get_ref() {
        DeValue::String(text) => ValueKind::String(text.clone().into_owned()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => i64::try_from(number).map_or(ValueKind::I128(number), ValueKind::I64),
            Err(_) => ValueKind::String(integer.to_string()),
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) => ValueKind::Float(number),
            Err(_) => ValueKind::String(float.to_string()),
        },
        DeValue::Boolean(boolean) => ValueKind::Boolean(*boolean),
        DeValue::Datetime(datetime) => ValueKind::String(datetime.to_string()),
        DeValue::Array(items) => ValueKind::Array(items.iter().map(|item| from_toml(item, origin)).collect()),
        DeValue::Table(table) => ValueKind::Table(toml_table(table, origin)),
    };
    Value::new(Some(&origin(value.span().start)), kind)
}
