//! Text that would cost too much to parse or plan is refused before either runs.
//!
//! The parser and DataFusion's planner are recursive, and so are the drops and clones of what they
//! build: a chain of twenty thousand `OR` overflows the stack and ends the process. The limits here
//! are counted on tokens, in one pass, without recursion.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::config::Config;
use crate::error::Error;

/// The tokens of `sql`, when they are within the limits.
///
/// # Errors
/// `TooComplex` with the limit that was passed; `Invalid` for text that has no tokens, such as an
/// open string literal.
pub(super) fn tokens(sql: &str, config: &Config) -> Result<Vec<TokenWithSpan>, Error> {
    let length_max = config.sql_length_max;
    if sql.len() as u64 > length_max.0 {
        let length = sql.len();
        return Err(Error::TooComplex(format!(
            "its text has {length} bytes, the limit is {length_max} (engine.sql_length_max)"
        )));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| Error::Invalid(error.to_string()))?;

    let mut depth = 0_usize;
    let mut deepest = 0;
    let mut operators = 0;
    let mut words = 0;
    // Whether a comma stands for a join: in `FROM a, b`, by the bracket that it is in.
    let mut in_from = vec![false];
    for token in &tokens {
        if matches!(token.token, Token::Whitespace(_)) {
            continue;
        }
        words += 1;
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                depth += 1;
                in_from.push(false);
                // `a[1][1]` is a chain.
                operators += usize::from(token.token == Token::LBracket);
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                depth = depth.saturating_sub(1);
                in_from.pop();
            }
            Token::Word(word) => match word.keyword {
                Keyword::FROM => in_from.last_mut().into_iter().for_each(|within| *within = true),
                Keyword::SELECT | Keyword::WHERE | Keyword::GROUP | Keyword::ORDER | Keyword::LIMIT => {
                    in_from.last_mut().into_iter().for_each(|within| *within = false);
                }
                // `CASE ... END` nests without brackets, `NOT NOT ...` and `A JOIN B JOIN ...` chain.
                Keyword::CASE => depth += 1,
                Keyword::END => depth = depth.saturating_sub(1),
                Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::XOR
                | Keyword::DIV
                | Keyword::IN
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::OVERLAPS
                | Keyword::NOTNULL
                | Keyword::PIVOT
                | Keyword::UNPIVOT
                | Keyword::BETWEEN
                | Keyword::JOIN
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::EXPLAIN
                | Keyword::WITH => operators += 1,
                _ => {}
            },
            Token::Comma if in_from.last() == Some(&true) => operators += 1,
            Token::Comma
            | Token::Period
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Placeholder(_)
            | Token::SemiColon => {}
            // Any other sign is an operator or part of one.
            _ => operators += 1,
        }
        deepest = deepest.max(depth);
    }
    for (what, count, limit, key) in [
        ("levels of nesting", deepest, config.sql_depth_max, "sql_depth_max"),
        ("operators", operators, config.sql_operators_max, "sql_operators_max"),
        ("tokens", words, config.sql_tokens_max, "sql_tokens_max"),
    ] {
        if count > limit {
            return Err(Error::TooComplex(format!("it has {count} {what}, the limit is {limit} (engine.{key})")));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(sql: &str) -> String {
        match tokens(sql, &Config::default()) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn limits_are_exact() {
        let nested = |depth: usize| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
        let chain = |count: usize| format!("SELECT 1{}", " + 1".repeat(count));
        let ors = |count: usize| format!("SELECT true{}", " OR true".repeat(count));
        let cases =
            |depth: usize| format!("SELECT {} 1 {}", "CASE WHEN true THEN ".repeat(depth), "END ".repeat(depth));
        let list = |count: usize| format!("SELECT 1 IN (0{})", ",1".repeat(count));
        let long = |bytes: usize| format!("SELECT '{}'", "x".repeat(bytes - 9));
        for (sql, expected) in [
            (nested(200), "ok"),
            (nested(201), "201 levels of nesting, the limit is 200 (engine.sql_depth_max)"),
            (chain(2000), "ok"),
            (chain(2001), "2001 operators, the limit is 2000 (engine.sql_operators_max)"),
            (ors(2001), "2001 operators"),
            (cases(201), "201 levels"),
            (list(90_000), "ok"),
            (list(100_000), "tokens, the limit is 200000"),
            (long(1 << 20), "ok"),
            (long((1 << 20) + 1), "its text has 1048577 bytes"),
            (format!("SELECT true{}", " XOR true".repeat(2001)), "2001 operators"),
            (format!("SELECT a{}", "[1]".repeat(2001)), "2001 operators"),
            (format!("SELECT 1{}", " COLLATE c".repeat(2001)), "2001 operators"),
            (format!("SELECT 1{}", " IN (1)".repeat(2001)), "2001 operators"),
            (format!("SELECT 1 FROM a{}", ", a".repeat(2001)), "2001 operators"),
            (
                format!("SELECT (SELECT 1 FROM a WHERE b IN (1{})) FROM a{}", ", 1".repeat(2001), ", a".repeat(1999)),
                "ok",
            ),
            (format!("SELECT 1 FROM a GROUP BY 1{}", ", 1".repeat(2001)), "ok"),
            ("SELECT 'open".to_owned(), "Unterminated string literal"),
        ] {
            let outcome = outcome(&sql);
            let ok = if expected == "ok" { outcome == "ok" } else { outcome.contains(expected) };
            let start: String = sql.chars().take(60).collect();
            assert!(ok, "{start}...: {outcome}, expected {expected}");
        }
    }
}
