//! Placeholders in the forms clients write, turned into the one form DataFusion plans.
//!
//! DataFusion knows `$1` and `$name`. JDBC, ADBC and most tools write `?`, others `:name`. DataFusion
//! would take every `?` for one and the same parameter, so the text is rewritten before it is parsed.

use std::collections::HashSet;

use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan};

use crate::error::Error;

/// The parameters of a statement, in the order in which a client binds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Placeholders {
    /// Ids as DataFusion has them: `$1`, `$2`, ... or `$name`, ...
    pub(crate) ids: Vec<String>,
    /// Whether they are named; then a client may bind them by column name.
    pub(crate) named: bool,
}

/// `sql` with `?` and `:name` rewritten, and its parameters.
///
/// # Errors
/// `Invalid` when forms are mixed that have no common order.
pub(super) fn rewrite(sql: &str, tokens: &[TokenWithSpan]) -> Result<(String, Placeholders), Error> {
    let mut text = String::with_capacity(sql.len());
    let mut offsets = Offsets::new(sql);
    let mut copied = 0;
    let (mut questions, mut highest, mut names) = (0_usize, 0_usize, Names::default());
    // Inside `[...]` and `{...}` a colon is a slice or a map entry.
    let mut brackets = 0_usize;

    let mut index = 0;
    while let Some(TokenWithSpan { token, span }) = tokens.get(index) {
        index += 1;
        match token {
            Token::LBracket | Token::LBrace => brackets += 1,
            Token::RBracket | Token::RBrace => brackets = brackets.saturating_sub(1),
            Token::Placeholder(placeholder) if placeholder == "?" => {
                questions += 1;
                let at = offsets.of(span.start);
                text.push_str(&sql[copied..at]);
                text.push_str(&format!("${questions}"));
                copied = at + 1;
            }
            Token::Placeholder(placeholder) => {
                let name = placeholder.get(1..).unwrap_or_default();
                match name.parse::<usize>() {
                    Ok(number) => highest = highest.max(number),
                    Err(_) => names.add(name),
                }
            }
            Token::Colon if brackets == 0 => {
                if let Some(TokenWithSpan { token: Token::Word(word), .. }) = tokens.get(index)
                    && word.quote_style.is_none()
                {
                    let at = offsets.of(span.start);
                    text.push_str(&sql[copied..at]);
                    text.push('$');
                    copied = at + 1;
                    names.add(&word.value);
                    index += 1;
                }
            }
            _ => {}
        }
    }
    text.push_str(&sql[copied..]);

    let forms = usize::from(questions > 0) + usize::from(highest > 0) + usize::from(!names.in_order.is_empty());
    if forms > 1 {
        return Err(Error::Invalid(
            "a statement may use one kind of placeholder: ?, or $1, or names ($name and :name)".to_owned(),
        ));
    }
    // A number far beyond what any client binds is a typing error, and would be a list of that length.
    let most = highest.max(questions).max(names.in_order.len());
    if most > PARAMETERS_MAX {
        return Err(Error::Invalid(format!(
            "placeholder ${most} is out of range; a statement may have {PARAMETERS_MAX} parameters"
        )));
    }
    let named = !names.in_order.is_empty();
    let ids = if named {
        names.in_order.iter().map(|name| format!("${name}")).collect()
    } else {
        (1..=questions.max(highest)).map(|number| format!("${number}")).collect()
    };
    Ok((text, Placeholders { ids, named }))
}

/// As many as PostgreSQL's protocol allows.
const PARAMETERS_MAX: usize = 65_535;

/// Names of parameters, each once, as they first appear.
#[derive(Debug, Default)]
struct Names {
    in_order: Vec<String>,
    known: HashSet<String>,
}

impl Names {
    fn add(&mut self, name: &str) {
        if self.known.insert(name.to_owned()) {
            self.in_order.push(name.to_owned());
        }
    }
}

/// Turns the tokenizer's line and column (both from 1, columns in characters) into byte offsets, for
/// locations that only go forward.
struct Offsets<'a> {
    rest: std::str::CharIndices<'a>,
    line: u64,
    column: u64,
    end: usize,
}

impl<'a> Offsets<'a> {
    fn new(sql: &'a str) -> Self {
        Self { rest: sql.char_indices(), line: 1, column: 1, end: sql.len() }
    }

    fn of(&mut self, location: Location) -> usize {
        loop {
            let here = self.rest.clone().next();
            if (self.line, self.column) >= (location.line, location.column) {
                return here.map_or(self.end, |(at, _)| at);
            }
            match self.rest.next() {
                Some((_, '\n')) => (self.line, self.column) = (self.line + 1, 1),
                Some(_) => self.column += 1,
                None => return self.end,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::config::Config;

    #[test]
    fn placeholders_are_rewritten_where_they_are_placeholders() {
        let mut lines = Vec::new();
        for sql in [
            "SELECT 1",
            "SELECT ?",
            "SELECT ?, ? + ?",
            "SELECT '?', \"?\", ? -- ? \n, ? /* ? */",
            "SELECT 'ä€', ?\nFROM t WHERE x = ? AND y = 'ö?'\n\n  AND z=?",
            "SELECT $2 + $1",
            "SELECT $b, $a, $b",
            "SELECT :b, :a, :b FROM t WHERE x=:c",
            "SELECT x::int, a[1:2], a[:n], {x: y} FROM t WHERE y = :y",
            "SELECT ? + $1",
            "SELECT :a + ?",
            "SELECT $99999999",
        ] {
            let tokens = super::super::limits::tokens(sql, &Config::default()).expect("it has tokens");
            lines.push(match rewrite(sql, &tokens) {
                Ok((text, found)) => format!("{text:?} {} named={}", found.ids.join(","), found.named),
                Err(error) => error.to_string(),
            });
        }
        expect![[r#"
            "SELECT 1"  named=false
            "SELECT $1" $1 named=false
            "SELECT $1, $2 + $3" $1,$2,$3 named=false
            "SELECT '?', \"?\", $1 -- ? \n, $2 /* ? */" $1,$2 named=false
            "SELECT 'ä€', $1\nFROM t WHERE x = $2 AND y = 'ö?'\n\n  AND z=$3" $1,$2,$3 named=false
            "SELECT $2 + $1" $1,$2 named=false
            "SELECT $b, $a, $b" $b,$a named=true
            "SELECT $b, $a, $b FROM t WHERE x=$c" $b,$a,$c named=true
            "SELECT x::int, a[1:2], a[:n], {x: y} FROM t WHERE y = $y" $y named=true
            a statement may use one kind of placeholder: ?, or $1, or names ($name and :name)
            a statement may use one kind of placeholder: ?, or $1, or names ($name and :name)
            placeholder $99999999 is out of range; a statement may have 65535 parameters"#]]
        .assert_eq(&lines.join("\n"));
    }
}
