//! The patterns of metadata commands: `%` stands for any text, `_` for one character, `\` takes the next one literally.

/// Whether `name` matches `pattern`. A pattern that is the name itself always matches: clients pass plain names, in which
/// a backslash is no escape.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    pattern == name || like(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
}

/// Whether `name` passes a filter that is a pattern, where no filter lets everything pass.
pub(crate) fn passes(filter: Option<&str>, name: &str) -> bool {
    filter.is_none_or(|pattern| matches(pattern, name))
}

/// Whether `catalog` passes a filter that is an exact name. The empty name asks for what has no catalog, which is nothing.
pub(crate) fn is_catalog(filter: Option<&str>, catalog: &str) -> bool {
    filter.is_none_or(|wanted| wanted == catalog && !wanted.is_empty())
}

/// Compares with at most one open `%` at a time: going back to the last one is enough, so that the time is bounded by the
/// product of the lengths whatever the pattern.
fn like(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut open: Option<(usize, usize)> = None;
    while n < name.len() {
        let one = match pattern.get(p) {
            Some('%') => {
                open = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('_') => Some(1),
            Some('\\') if p + 1 < pattern.len() => (pattern[p + 1] == name[n]).then_some(2),
            Some(c) => (*c == name[n]).then_some(1),
            None => None,
        };
        match (one, &mut open) {
            (Some(width), _) => {
                p += width;
                n += 1;
            }
            (None, Some((after, taken))) => {
                *taken += 1;
                (p, n) = (*after, *taken);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("%", "", true),
            ("%", "anything", true),
            ("a%", "abc", true),
            ("%c", "abc", true),
            ("%b%", "abc", true),
            ("a%c%e", "abcde", true),
            ("a%c%e", "abcdf", false),
            ("_", "", false),
            ("_b_", "abc", true),
            ("l_item", "lineitem", false),
            ("line_tem", "lineitem", true),
            ("line\\_item", "line_item", true),
            ("line\\_item", "lineXitem", false),
            ("100\\%", "100%", true),
            ("100\\%", "1000", false),
            ("a\\b", "a\\b", true),
            ("a\\", "a\\", true),
            ("Orders", "orders", false),
            ("größe_", "größe1", true),
            ("%ab", "aab", true),
            ("%aab%", "aaaab", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} on {name:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let (pattern, name) = ("%a".repeat(1000) + "b", "a".repeat(2000));
        assert!(!matches(&pattern, &name));
    }

    #[test]
    fn filters() {
        assert!(passes(None, "x") && !passes(Some(""), "x"));
        assert!(is_catalog(None, "c") && is_catalog(Some("c"), "c"));
        assert!(!is_catalog(Some(""), "c") && !is_catalog(Some(""), "") && !is_catalog(Some("%"), "c"));
    }
}
