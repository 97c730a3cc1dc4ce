//! The configuration as text: what is in force (`config print`), the reference, and a file with every default.

use std::fmt::Write;

use config::ValueKind;
use serde_json::Value as Json;

use super::Config;
use super::load::{Loaded, find, origin_of, to_json};
use super::path::KeyPath;
use super::schema::{self, Child, Node};

/// One line of documentation material: a section, a setting, or a setting of each entry of a map or list.
struct Item<'a> {
    path: KeyPath,
    node: Node<'a>,
    section: bool,
    /// None below a map or list, where there is nothing by default.
    default: Option<Json>,
}

/// All sections and settings below `node`; the settings of a section come before its sections, as TOML needs it.
fn items<'a>(node: Node<'a>, path: &KeyPath, defaults: Option<&Json>, all: &mut Vec<Item<'a>>) {
    let (sections, settings): (Vec<_>, Vec<_>) =
        node.properties().into_iter().partition(|(_, node)| node.is_section() && !node.is("array"));
    for (key, node) in settings {
        let default = defaults.map(|defaults| defaults.get(key).cloned().unwrap_or(Json::Null));
        all.push(Item { path: path.key(key), node, section: false, default });
        let entry = match node.entries() {
            Some(Child::Known(entry)) => Some((path.key(key).key("<name>"), entry)),
            _ => node.items().map(|items| (path.key(key).key("<each>"), items)),
        };
        if let Some((path, entry)) = entry
            && entry.is_section()
        {
            items(entry, &path, None, all);
        }
    }
    for (key, node) in sections {
        let below = defaults.and_then(|defaults| defaults.get(key));
        all.push(Item { path: path.key(key), node, section: true, default: None });
        items(node, &path.key(key), below, all);
    }
}

fn all_items() -> Vec<Item<'static>> {
    // Every config type serializes; if one did not, the test of the reference would show a page without defaults.
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut all = Vec::new();
    items(schema::root(), &KeyPath::default(), Some(&defaults), &mut all);
    all
}

/// Every setting in force as a line of TOML, with where it came from. Secrets are `***`; a reference is shown, not what it refers to.
pub fn print(loaded: &Loaded) -> String {
    let mut lines = Vec::new();
    for item in all_items().into_iter().filter(|item| !item.section) {
        let Some(default) = &item.default else { continue };
        match find(&loaded.written, &item.path) {
            Some(value) => print_value(value, item.node, &item.path, false, &mut lines),
            None => {
                let line = match default {
                    Json::Null if item.node.is_secret() => format!("# {} = \"***\"", item.path),
                    Json::Null => format!("# {} =", item.path),
                    Json::Object(entries) if entries.is_empty() => format!("# {} =", item.path),
                    default => format!("{} = {}", item.path, default_text(default)),
                };
                let origin = if matches!(default, Json::Null) { "default: not set" } else { "default" };
                lines.push((line, origin.to_owned()));
            }
        }
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 80).max().unwrap_or(0);
    lines.iter().fold(String::new(), |mut text, (line, origin)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line:<width$}  # {origin}");
        text
    })
}

fn print_value(value: &config::Value, node: Node<'_>, path: &KeyPath, free: bool, lines: &mut Vec<(String, String)>) {
    let ValueKind::Table(table) = &value.kind else {
        let line = format!("{path} = {}", toml_text(&masked(to_json(value), node, path, free)));
        lines.push((line, origin_of(value, &KeyPath::default())));
        return;
    };
    let mut keys: Vec<&String> = table.keys().collect();
    keys.sort();
    for key in keys {
        let (below, free) = below(node, key);
        print_value(&table[key], below, &path.key(key), free, lines);
    }
}

/// The schema below `key`, and whether the key is a name that someone made up.
fn below<'a>(node: Node<'a>, key: &str) -> (Node<'a>, bool) {
    let known = node.properties().iter().any(|(name, _)| *name == key);
    match node.child(key) {
        Child::Known(below) => (below, !known),
        Child::Free | Child::Unknown => (schema::free(), true),
    }
}

fn masked(value: Json, node: Node<'_>, path: &KeyPath, free: bool) -> Json {
    match value {
        Json::Object(table) => table
            .into_iter()
            .map(|(key, value)| {
                let (below, free) = below(node, &key);
                let value = masked(value, below, &path.key(&key), free);
                (key, value)
            })
            .collect(),
        Json::Array(items) => {
            items.into_iter().map(|item| masked(item, node.items().unwrap_or(schema::free()), path, free)).collect()
        }
        Json::String(text) if is_reference(&text) => Json::String(text),
        Json::Null => Json::Null,
        _ if node.is_secret() || (free && sounds_secret(path)) => "***".into(),
        other => other,
    }
}

fn is_reference(text: &str) -> bool {
    (text.starts_with("${env:") || text.starts_with("${file:")) && text.find('}') == Some(text.len() - 1)
}

/// In a map whose keys the schema does not know, such as the options of an object store, names are all there is to go by.
fn sounds_secret(path: &KeyPath) -> bool {
    let last = match path.0.last() {
        Some(super::path::Part::Key(key)) => key.to_lowercase(),
        _ => return false,
    };
    ["secret", "password", "token", "credential", "access_key", "account_key", "sas"]
        .iter()
        .any(|word| last.contains(word))
}

fn default_text(default: &Json) -> String {
    let text = toml_text(default);
    // Sizes print as `512.0 MiB`; nobody writes them so.
    for unit in ["KiB", "MiB", "GiB", "TiB"] {
        if let Some(number) = text.strip_suffix(&format!(".0 {unit}\"")) {
            return format!("{number} {unit}\"");
        }
    }
    text
}

/// A value as TOML on one line. JSON's way to write strings and numbers is also TOML's.
fn toml_text(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(toml_text).collect::<Vec<_>>().join(", ")),
        Json::Object(table) if table.is_empty() => "{}".to_owned(),
        Json::Object(table) => {
            let entries =
                table.iter().map(|(key, value)| format!("{} = {}", KeyPath::default().key(key), toml_text(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Json::Null => "\"\"".to_owned(),
        other => other.to_string(),
    }
}

/// `config/reference.md`: every setting with its documentation, type, default and environment variable.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration reference\n\n\
         Written by `updraft config reference` from the code. Every setting can be given in one TOML file (`--config`, or\n\
         `UPDRAFT_CONFIG`), by its environment variable, or with `--set key=value`; the later in this list wins.\n\n\
         - **Sizes** are written as `512MiB` or `2GiB`, **durations** as `30s`, `5m` or `1h 30m`.\n\
         - **Lists** in a variable or `--set` are `a,b` or TOML: `--set 'catalog.data=[\"a\", \"b\"]'`. Tables are TOML, or one\n\
         \x20 `--set` per key. An empty value unsets an optional setting.\n\
         - **References**: `${env:NAME}` and `${file:/path}` in a value are replaced by the variable or the trimmed content of\n\
         \x20 the file. Use them for secrets.\n\
         - `updraft config check` names every problem at once; `updraft config print` shows each value and where it came from.\n",
    );
    for item in all_items() {
        let Item { path, node, section, .. } = &item;
        let heading = if *section { "##" } else { "###" };
        let _ = write!(text, "\n{heading} `{path}`\n\n");
        if !node.description().is_empty() {
            let _ = write!(text, "{}\n\n", node.description());
        }
        if *section {
            continue;
        }
        for (name, doc) in node.choices() {
            let _ = writeln!(text, "- `{name}`{}{}", if doc.is_empty() { "" } else { ": " }, doc.replace('\n', " "));
        }
        if !node.choices().is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", facts(&item));
    }
    text
}

fn facts(item: &Item<'_>) -> String {
    let mut facts = vec![format!("Type: {}.", item.node.type_text())];
    match &item.default {
        _ if item.node.is_secret() => facts.push("Secret; not set by default.".to_owned()),
        Some(Json::Null) => facts.push("Not set by default.".to_owned()),
        Some(default) => facts.push(format!("Default: `{}`.", default_text(default))),
        None => match item.node.default() {
            Some(Json::Null) | None => {}
            Some(default) => facts.push(format!("Default: `{}`.", default_text(default))),
        },
    }
    if !item.path.to_string().contains("<each>") {
        facts.push(format!("Environment: `{}`.", item.path.env_name().replace("<NAME>", "_NAME_")));
    }
    facts.join(" ")
}

/// `config/default.toml`: every setting, commented out, at its default.
pub fn default_toml() -> String {
    let mut text = String::from(
        "# Every setting at its default. Written from the code; copy what you change into a file of your own.\n\
         # `#key = value` is the default; `# key: ...` is not set by default.\n",
    );
    for item in all_items() {
        let Item { path, node, section, default } = &item;
        let key = path.0.last().map(|part| KeyPath(vec![part.clone()]).to_string()).unwrap_or_default();
        text.push('\n');
        for line in node.description().lines() {
            let _ = writeln!(text, "# {line}");
        }
        let _ = match default {
            None if *section => writeln!(text, "[{path}]"),
            // Settings of an entry of a map or list: there is no section they could stand in.
            None => writeln!(text, "# {path}: {}", node.type_text()),
            Some(Json::Null) => writeln!(text, "# {key}: {}, not set", node.type_text()),
            Some(default) => writeln!(text, "#{key} = {}", default_text(default)),
        };
    }
    text
}
