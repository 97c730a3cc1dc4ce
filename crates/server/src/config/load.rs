//! From sources to a [`Config`], or to everything that is wrong with them.

use config::{Value, ValueKind};

use super::layers::{self, Sources};
use super::path::{KeyPath, Part};
use super::problem::{Problem, Problems};
use super::schema::{self, Child, Node};
use super::{Config, references};

/// A configuration and, for `config print`, the values it was made of.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What the server runs with.
    pub config: Config,
    /// What the layers say, merged, with references as they were written.
    pub(super) written: Value,
}

/// Reads, merges and checks all sources.
///
/// # Errors
/// All problems at once, ordered by key path.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let mut written = merge(sources, &mut problems);
    add_data(&mut written, &sources.data);

    let mut resolved = written.clone();
    resolve(&mut resolved, schema::root(), &KeyPath::default(), &sources.env, &mut problems);
    remove_unknown(&mut resolved, schema::root(), &KeyPath::default(), &mut problems);
    let origins = resolved.clone();
    let config = deserialize(resolved, &mut problems);

    if let Some(config) = &config {
        // A setting that could not be read stands at its default here; what is wrong with it is known already.
        let known: Vec<String> = problems.iter().map(|problem| problem.path.clone()).collect();
        let semantic = config.problems().into_iter().filter(|(path, _)| !known.contains(path));
        problems.extend(semantic.map(|(path, message)| {
            let origin = KeyPath::parse(&path).map_or_else(|_| "default".to_owned(), |path| origin_of(&origins, &path));
            Problem { path, origin, message }
        }));
    }
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, written }),
        _ => {
            problems.sort_by(|a, b| (&a.path, &a.origin, &a.message).cmp(&(&b.path, &b.origin, &b.message)));
            problems.dedup();
            Err(Problems(problems))
        }
    }
}

fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> Value {
    let mut builder = config::Config::builder();
    if let Some(path) = &sources.file {
        builder = builder.add_source(layers::file(path, problems));
    }
    builder = builder.add_source(layers::environment(&sources.env, problems));
    builder = builder.add_source(layers::flags(sources, problems));
    match builder.build() {
        Ok(merged) => merged.cache,
        Err(error) => {
            problems.push(Problem { path: String::new(), origin: "sources".to_owned(), message: error.to_string() });
            Value::new(None, ValueKind::Table(config::Map::new()))
        }
    }
}

/// `--data` adds to what the file and the environment name, unlike `--set catalog.data=...`, which replaces it.
fn add_data(written: &mut Value, data: &[String]) {
    if data.is_empty() {
        return;
    }
    let origin = "--data".to_owned();
    let ValueKind::Table(root) = &mut written.kind else { return };
    let catalog = root
        .entry("catalog".to_owned())
        .or_insert_with(|| Value::new(Some(&origin), ValueKind::Table(config::Map::new())));
    let ValueKind::Table(catalog) = &mut catalog.kind else { return };
    let roots =
        catalog.entry("data".to_owned()).or_insert_with(|| Value::new(Some(&origin), ValueKind::Array(Vec::new())));
    let ValueKind::Array(roots) = &mut roots.kind else { return };
    roots.extend(data.iter().map(|root| Value::new(Some(&origin), ValueKind::String(root.clone()))));
}

/// Puts the text of `${...}` references in place, as the type that the schema wants there.
fn resolve(value: &mut Value, node: Node<'_>, path: &KeyPath, env: &[(String, String)], problems: &mut Vec<Problem>) {
    let origin = origin(value);
    match &mut value.kind {
        ValueKind::String(text) => {
            let Some(resolved) = references::resolve(text, env) else { return };
            match resolved.and_then(|text| layers::coerce(&text, node, &origin)) {
                Ok(resolved) => *value = resolved,
                Err(message) => problems.push(Problem { path: path.to_string(), origin, message }),
            }
        }
        ValueKind::Table(table) => {
            for (key, value) in table {
                // Below a free place every value is text as it stands.
                let below = match node.child(key) {
                    Child::Known(below) => below,
                    Child::Free | Child::Unknown => schema::free(),
                };
                resolve(value, below, &path.key(key), env, problems);
            }
        }
        ValueKind::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                resolve(item, node.items().unwrap_or(schema::free()), &path.index(index), env, problems);
            }
        }
        _ => {}
    }
}

fn remove_unknown(value: &mut Value, node: Node<'_>, path: &KeyPath, problems: &mut Vec<Problem>) {
    match &mut value.kind {
        ValueKind::Table(table) => table.retain(|key, value| match node.child(key) {
            Child::Known(below) => {
                remove_unknown(value, below, &path.key(key), problems);
                true
            }
            Child::Free => true,
            // A table where the schema has a plain value is a type error; its keys are not.
            Child::Unknown if !node.is("object") => true,
            Child::Unknown => {
                let origin = origin(value);
                let message = unknown_key(&path.key(key), node, &origin);
                problems.push(Problem { path: path.key(key).to_string(), origin, message });
                false
            }
        }),
        ValueKind::Array(items) => {
            let Some(below) = node.items() else { return };
            for (index, item) in items.iter_mut().enumerate() {
                remove_unknown(item, below, &path.index(index), problems);
            }
        }
        _ => {}
    }
}

/// Names the nearest right key: a neighbour with nearly this name, or a key of any section that has it.
fn unknown_key(path: &KeyPath, parent: Node<'_>, origin: &str) -> String {
    let Some(Part::Key(key)) = path.0.last() else { return "unknown key".to_owned() };
    let mut above = path.clone();
    above.0.pop();
    let neighbours = parent
        .properties()
        .into_iter()
        .map(|(name, _)| (strsim::normalized_damerau_levenshtein(key, name), above.key(name)));
    let elsewhere = schema::all_paths().into_iter().map(|other| {
        // The whole path is compared, and the last key alone: `memory_limit` without its section, `engin.memory_limit`.
        let whole = strsim::normalized_damerau_levenshtein(&path.to_string(), &other.to_string());
        let last = match other.0.last() {
            Some(Part::Key(name)) if name == key => 0.9,
            _ => 0.0,
        };
        (f64::max(whole, last), other)
    });
    let nearest = neighbours.chain(elsewhere).filter(|(similarity, _)| *similarity >= 0.6).fold(
        None,
        |best: Option<(f64, KeyPath)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        },
    );
    match nearest {
        Some((_, nearest)) if origin.starts_with(super::path::ENV_PREFIX) => {
            format!("unknown key; did you mean {}?", nearest.env_name())
        }
        Some((_, nearest)) => format!("unknown key; did you mean `{nearest}`?"),
        None => {
            let names: Vec<&str> = parent.properties().into_iter().map(|(name, _)| name).collect();
            match above.0.is_empty() {
                true => format!("unknown section; there are {}", names.join(", ")),
                false if names.is_empty() => format!("unknown key; `{above}` has no settings"),
                false => format!("unknown key; `{above}` has {}", names.join(", ")),
            }
        }
    }
}

/// Deserializes; a value that does not fit is reported and taken out, and the rest is tried again, until all are known.
fn deserialize(whole: Value, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut value = whole.clone();
    // Items taken out of a list, as (list, index it had): those after it have moved.
    let mut removed: Vec<(KeyPath, usize)> = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, Config>(to_json(&value)) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let parts = error.path().iter().map_while(|segment| match segment {
            serde_path_to_error::Segment::Map { key } => Some(Part::Key(key.clone())),
            serde_path_to_error::Segment::Seq { index } => Some(Part::Index(*index)),
            // The name of a choice or something unnamed: the value around it is what a person wrote.
            _ => None,
        });
        let mut path = KeyPath(parts.collect());
        while !path.0.is_empty() && find(&value, &path).is_none() {
            path.0.pop();
        }
        let shown = before_removal(&path, &removed);
        let message = type_error(&error.into_inner().to_string(), &shown, find(&value, &path));
        // A field is also missing when it was just taken out for being wrong.
        let field = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let known =
            field.is_some_and(|field| problems.iter().any(|problem| problem.path == shown.key(field).to_string()));
        if !known {
            problems.push(Problem { path: shown.to_string(), origin: origin_of(&whole, &shown), message });
        }
        if let Some((Part::Index(index), parent)) = shown.0.split_last() {
            removed.push((KeyPath(parent.to_vec()), *index));
            removed.sort();
        }
        if path.0.is_empty() || !remove(&mut value, &path) {
            return None;
        }
    }
}

/// The path as it was before items were taken out of lists.
fn before_removal(path: &KeyPath, removed: &[(KeyPath, usize)]) -> KeyPath {
    path.0.iter().fold(KeyPath::default(), |before, part| match part {
        Part::Key(key) => before.key(key),
        Part::Index(index) => {
            let gone = removed.iter().filter(|(list, _)| *list == before);
            let original = gone.fold(*index, |index, (_, gone)| if *gone <= index { index + 1 } else { index });
            before.index(original)
        }
    })
}

/// The message of serde, with the nearest choice and without the secret that it may quote.
fn type_error(message: &str, path: &KeyPath, value: Option<&Value>) -> String {
    let Child::Known(node) = schema::at(path) else { return message.to_owned() };
    if node.is_secret() {
        return format!("the value does not fit; {} is expected", node.type_text());
    }
    if node.is_section() && !matches!(value.map(|value| &value.kind), Some(ValueKind::Table(_))) {
        return format!("is a section; set its keys, such as `{}`", first_key(node, path));
    }
    let choices = node.choices();
    if let Some(ValueKind::String(text)) = value.map(|value| &value.kind)
        && !choices.is_empty()
    {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
        let nearest = choices
            .iter()
            .map(|(name, _)| (strsim::normalized_damerau_levenshtein(text, name), *name))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = match nearest {
            Some((similarity, name)) if similarity >= 0.5 => format!("; did you mean `{name}`?"),
            _ => String::new(),
        };
        return format!("`{text}` is none of {}{hint}", names.join(", "));
    }
    // Rust's names of types mean little to who writes a configuration.
    let expected = match node.type_text().as_str() {
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        name if name.starts_with("list") => format!("a {name}"),
        _ => return message.to_owned(),
    };
    match message.split_once(", expected ") {
        Some((found, _)) => format!("{}; {expected} is expected", found.replacen("invalid type: ", "this is the ", 1)),
        None => message.to_owned(),
    }
}

fn first_key(section: Node<'_>, path: &KeyPath) -> KeyPath {
    section.properties().first().map_or_else(|| path.clone(), |(key, _)| path.key(key))
}

/// The value at `path`, if a layer has one.
pub(super) fn find<'a>(value: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.0.iter().try_fold(value, |value, part| match (&value.kind, part) {
        (ValueKind::Table(table), Part::Key(key)) => table.get(key),
        (ValueKind::Array(items), Part::Index(index)) => items.get(*index),
        _ => None,
    })
}

/// Where the value at `path` came from; `default` when no layer has one.
pub(super) fn origin_of(value: &Value, path: &KeyPath) -> String {
    find(value, path).map_or_else(|| "default".to_owned(), origin)
}

/// Where a value came from. Merging leaves a table no origin of its own: it is where its first key is.
fn origin(value: &Value) -> String {
    if let Some(origin) = value.origin() {
        return origin.to_owned();
    }
    let first = match &value.kind {
        ValueKind::Table(table) => table.iter().min_by_key(|(key, _)| *key).map(|(_, value)| value),
        ValueKind::Array(items) => items.first(),
        _ => None,
    };
    first.map_or_else(|| "an empty table".to_owned(), origin)
}

fn remove(value: &mut Value, path: &KeyPath) -> bool {
    let Some((last, parents)) = path.0.split_last() else { return false };
    let mut parent = value;
    for part in parents {
        let next = match (&mut parent.kind, part) {
            (ValueKind::Table(table), Part::Key(key)) => table.get_mut(key),
            (ValueKind::Array(items), Part::Index(index)) => items.get_mut(*index),
            _ => None,
        };
        match next {
            Some(next) => parent = next,
            None => return false,
        }
    }
    match (&mut parent.kind, last) {
        (ValueKind::Table(table), Part::Key(key)) => table.remove(key).is_some(),
        (ValueKind::Array(items), Part::Index(index)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

pub(super) fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        ValueKind::Nil => serde_json::Value::Null,
        ValueKind::Boolean(boolean) => (*boolean).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::U64(number) => (*number).into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::I128(number) => u64::try_from(*number).map_or_else(|_| number.to_string().into(), Into::into),
        ValueKind::U128(number) => u64::try_from(*number).map_or_else(|_| number.to_string().into(), Into::into),
        ValueKind::String(text) => text.clone().into(),
        ValueKind::Table(table) => table.iter().map(|(key, value)| (key.clone(), to_json(value))).collect(),
        ValueKind::Array(items) => items.iter().map(to_json).collect(),
    }
}
