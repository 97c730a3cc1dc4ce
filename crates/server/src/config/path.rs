//! Key paths: `engine.memory_limit`, `catalog.tables."a.b".location`, `auth.users[0].name`.

use std::fmt;

/// The prefix of every environment variable that is a setting.
pub(super) const ENV_PREFIX: &str = "UPDRAFT__";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Key(String),
    Index(usize),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct KeyPath(pub(super) Vec<Part>);

impl KeyPath {
    /// Parses what a person writes left of `=`: keys between dots, quoted when a key holds a dot, and `[0]` for a list's item.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let (key, after) = match rest.chars().next() {
                Some(quote @ ('"' | '\'')) => {
                    rest[1..].split_once(quote).ok_or_else(|| format!("a quote is not closed in `{text}`"))?
                }
                _ => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
            };
            if key.is_empty() {
                return Err(format!(
                    "`{text}` is not a key path; write keys between dots, such as `engine.memory_limit`"
                ));
            }
            parts.push(Part::Key(key.to_owned()));
            rest = after;
            while let Some(inner) = rest.strip_prefix('[') {
                let parsed = inner.split_once(']').and_then(|(index, after)| Some((index.parse().ok()?, after)));
                let (index, after) =
                    parsed.ok_or_else(|| format!("`[` is not followed by a number and `]` in `{text}`"))?;
                parts.push(Part::Index(index));
                rest = after;
            }
            match rest.strip_prefix('.') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(Self(parts)),
                None => return Err(format!("`{text}` is not a key path; a dot is missing before `{rest}`")),
            }
        }
    }

    /// The path that the environment variable `name` sets; none when it is no setting of ours.
    pub(super) fn from_env(name: &str) -> Option<Self> {
        let keys = name.strip_prefix(ENV_PREFIX)?;
        Some(Self(keys.split("__").map(|key| Part::Key(key.to_lowercase())).collect()))
    }

    /// The name of the environment variable that sets this path. List items have none; the list is set as a whole.
    pub(super) fn env_name(&self) -> String {
        let keys: Vec<String> = self
            .0
            .iter()
            .filter_map(|part| match part {
                Part::Key(key) => Some(key.to_uppercase()),
                Part::Index(_) => None,
            })
            .collect();
        format!("{ENV_PREFIX}{}", keys.join("__"))
    }

    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Part::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Part::Index(index))
    }

    fn with(&self, part: Part) -> Self {
        let mut parts = self.0.clone();
        parts.push(part);
        Self(parts)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, part) in self.0.iter().enumerate() {
            match part {
                Part::Index(index) => write!(f, "[{index}]")?,
                Part::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    let bare = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "_-<>".contains(c));
                    if bare { f.write_str(key)? } else { write!(f, "\"{key}\"")? }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::KeyPath;

    #[test]
    fn paths_are_read_as_they_are_written() {
        for text in ["engine.memory_limit", "catalog.tables.\"a.b\".location", "auth.users[0].name", "x"] {
            assert_eq!(KeyPath::parse(text).map(|path| path.to_string()), Ok(text.to_owned()));
        }
        for text in ["", ".", "a.", "a..b", "a[x]", "a[0", "\"a", "a[0]b"] {
            assert!(KeyPath::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn environment_names_go_both_ways() {
        let path = KeyPath::from_env("UPDRAFT__ENGINE__MEMORY_LIMIT").expect("a name of ours");
        assert_eq!(path.to_string(), "engine.memory_limit");
        assert_eq!(path.env_name(), "UPDRAFT__ENGINE__MEMORY_LIMIT");
        assert_eq!(KeyPath::from_env("UPDRAFT_CONFIG"), None);
    }
}
