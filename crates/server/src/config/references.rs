//! `${env:NAME}` and `${file:/path}` in a value: where secrets come from, so that they need not stand in the file.

/// Replaces the references in `text`. None when there are none; `$${` stands for `${`.
pub(super) fn resolve(text: &str, env: &[(String, String)]) -> Option<Result<String, String>> {
    if !text.contains("${env:") && !text.contains("${file:") {
        return None;
    }
    Some(replace(text, env))
}

fn replace(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let mut resolved = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            resolved.push_str(&rest[..start - 1]);
            resolved.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        resolved.push_str(&rest[..start]);
        let reference = &rest[start + 2..];
        let (name, after) = reference.split_once('}').ok_or("a reference `${` is not closed by `}`")?;
        if let Some(variable) = name.strip_prefix("env:") {
            let value = env.iter().find(|(key, _)| key == variable);
            let (_, value) = value.ok_or_else(|| format!("environment variable {variable} is not set"))?;
            resolved.push_str(value);
        } else if let Some(path) = name.strip_prefix("file:") {
            let content = std::fs::read_to_string(path).map_err(|error| format!("cannot read file {path}: {error}"))?;
            // Files written by an editor or by `echo` end in a line break that is no part of the secret.
            resolved.push_str(content.trim());
        } else {
            resolved.push_str("${");
            resolved.push_str(name);
            resolved.push('}');
        }
        rest = after;
    }
    resolved.push_str(rest);
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn references_are_replaced_and_the_rest_is_left() {
        let env = [("NAME".to_owned(), "value".to_owned())];
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("secret");
        std::fs::write(&file, "  hidden \n").expect("a file");
        let file = format!("x${{file:{}}}", file.display());
        for (text, expected) in [
            ("plain ${other}", None),
            ("${env:NAME}", Some(Ok("value".to_owned()))),
            ("a ${env:NAME} b ${env:NAME}", Some(Ok("a value b value".to_owned()))),
            ("$${env:NAME}", Some(Ok("${env:NAME}".to_owned()))),
            ("${env:GONE}", Some(Err("environment variable GONE is not set".to_owned()))),
            ("${env:NAME", Some(Err("a reference `${` is not closed by `}`".to_owned()))),
            (&file, Some(Ok("xhidden".to_owned()))),
        ] {
            assert_eq!(resolve(text, &env), expected, "{text}");
        }
    }
}
