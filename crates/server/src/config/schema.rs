//! What may stand at a key path, read from the JSON schema of the root type.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Config;
use super::path::{KeyPath, Part};

/// One place in the schema: a section, a setting, an entry of a map, an item of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a>(&'a Value);

/// What a key of a table leads to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Child<'a> {
    /// A known key, or an entry of a map whose entries are described.
    Known(Node<'a>),
    /// Anything may stand here.
    Free,
    /// There is no such key.
    Unknown,
}

/// The schema of the whole configuration. Config types are not recursive, so every subschema is in its place.
pub(super) fn root() -> Node<'static> {
    static ROOT: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        settings.into_generator().into_root_schema_for::<Config>().to_value()
    });
    Node(&ROOT)
}

impl<'a> Node<'a> {
    /// The schema itself and, for a choice between schemas, each that may apply.
    fn alternatives(self) -> Vec<Node<'a>> {
        let mut all = vec![self];
        for choice in ["anyOf", "oneOf", "allOf"] {
            let options = self.0.get(choice).and_then(Value::as_array).into_iter().flatten();
            all.extend(options.flat_map(|option| Node(option).alternatives()));
        }
        all
    }

    fn types(self) -> Vec<&'a str> {
        let mut types = Vec::new();
        for node in self.alternatives() {
            match node.0.get("type") {
                Some(Value::String(name)) => types.push(name.as_str()),
                Some(Value::Array(names)) => types.extend(names.iter().filter_map(Value::as_str)),
                _ if node.0.get("const").or(node.0.get("enum")).is_some() => types.push("string"),
                _ => {}
            }
        }
        types
    }

    pub(super) fn is(self, name: &str) -> bool {
        self.types().contains(&name)
    }

    /// Names of the types a value may have, for people: `integer`, `list`, `table`.
    pub(super) fn type_text(self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for name in self.types() {
            let name = match name {
                "array" => "list",
                "object" => "table",
                "null" => continue,
                other => other,
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match names.as_slice() {
            [] => "any".to_owned(),
            ["list"] => match self.items().map(Node::type_text) {
                Some(items) if items != "any" => format!("list of {items}s"),
                _ => "list".to_owned(),
            },
            _ => names.join(" or "),
        }
    }

    /// The documentation as one text; lines of a paragraph are joined.
    pub(super) fn description(self) -> &'a str {
        self.0.get("description").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn default(self) -> Option<&'a Value> {
        self.0.get("default")
    }

    pub(super) fn is_secret(self) -> bool {
        self.alternatives()
            .iter()
            .any(|node| node.0.get("x-secret").is_some_and(|secret| secret != &Value::Bool(false)))
    }

    /// Known keys, in the order of the alternatives and of their names.
    pub(super) fn properties(self) -> Vec<(&'a str, Node<'a>)> {
        let mut properties: BTreeMap<&str, Node<'_>> = BTreeMap::new();
        for node in self.alternatives() {
            let known = node.0.get("properties").and_then(Value::as_object).into_iter().flatten();
            for (key, schema) in known {
                properties.entry(key).or_insert(Node(schema));
            }
        }
        properties.into_iter().collect()
    }

    /// The schema of a map's entries; none when this is no map.
    pub(super) fn entries(self) -> Option<Child<'a>> {
        let alternatives = self.alternatives();
        let described = alternatives.iter().find_map(|node| match node.0.get("additionalProperties") {
            Some(Value::Bool(false)) | None => None,
            Some(Value::Bool(true)) => Some(Child::Free),
            Some(schema) => Some(Child::Known(Node(schema))),
        });
        // A table about which the schema says nothing takes anything.
        let open = alternatives.iter().any(|node| {
            node.0.get("type").is_some_and(|name| name == "object")
                && node.0.get("properties").is_none()
                && node.0.get("additionalProperties").is_none()
                && !["anyOf", "oneOf", "allOf"].iter().any(|choice| node.0.get(choice).is_some())
        });
        described.or_else(|| open.then_some(Child::Free))
    }

    /// The schema of a list's items.
    pub(super) fn items(self) -> Option<Node<'a>> {
        self.alternatives().iter().find_map(|node| node.0.get("items").map(Node))
    }

    /// Whether settings below this one are documented one by one.
    pub(super) fn is_section(self) -> bool {
        !self.properties().is_empty() && !self.is("string")
    }

    pub(super) fn child(self, key: &str) -> Child<'a> {
        if let Some((_, node)) = self.properties().into_iter().find(|(name, _)| *name == key) {
            return Child::Known(node);
        }
        if let Some(entries) = self.entries() {
            return entries;
        }
        // A schema without any statement, such as a plain JSON value's, takes anything.
        if self.types().is_empty() { Child::Free } else { Child::Unknown }
    }

    /// The values of a choice with their documentation; empty when it is no choice between names.
    pub(super) fn choices(self) -> Vec<(&'a str, &'a str)> {
        let mut choices = Vec::new();
        for node in self.alternatives() {
            if let Some(name) = node.0.get("const").and_then(Value::as_str) {
                choices.push((name, node.description()));
            }
            let names = node.0.get("enum").and_then(Value::as_array).into_iter().flatten();
            choices.extend(names.filter_map(Value::as_str).map(|name| (name, "")));
        }
        choices
    }
}

/// The schema of a place where anything may stand.
pub(super) fn free() -> Node<'static> {
    static FREE: Value = Value::Bool(true);
    Node(&FREE)
}

/// The schema at `path`.
pub(super) fn at(path: &KeyPath) -> Child<'static> {
    let mut node = root();
    for part in &path.0 {
        let child = match part {
            Part::Key(key) => node.child(key),
            Part::Index(_) => node.items().map_or(Child::Free, Child::Known),
        };
        match child {
            Child::Known(next) => node = next,
            other => return other,
        }
    }
    Child::Known(node)
}

/// Every key path that can be set, sections included, with `<name>` for the entry of a map.
pub(super) fn all_paths() -> Vec<KeyPath> {
    fn walk(node: Node<'_>, path: &KeyPath, all: &mut Vec<KeyPath>) {
        for (key, child) in node.properties() {
            all.push(path.key(key));
            walk(child, &path.key(key), all);
        }
    }
    let mut all = Vec::new();
    walk(root(), &KeyPath::default(), &mut all);
    all
}
