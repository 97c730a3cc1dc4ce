//! Text to a statement, and which statements there are.

use std::collections::VecDeque;

use datafusion::sql::parser::{DFParserBuilder, ResetStatement, Statement as DfStatement};
use datafusion::sql::sqlparser::ast::{Expr, ObjectName, Set, Statement as SqlStatement, UnaryOperator, Value};
use datafusion::sql::sqlparser::dialect::GenericDialect;

use super::limits;
use super::placeholders::{self, Placeholders};
use super::uses;
use crate::config::Config;
use crate::error::Error;

/// The parser's own limit, above what the token limits let through, so that theirs is the one users meet.
const PARSER_RECURSION_LIMIT: usize = 1_000;

/// One statement of a kind that may run.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// SELECT, VALUES, EXPLAIN, SHOW TABLES/COLUMNS/..., DESCRIBE: DataFusion plans it.
    Read(Box<DfStatement>, Placeholders),
    /// `SET name = value`
    Set(String, String),
    /// `RESET name`
    Reset(String),
    /// `SHOW name`; `None` = `SHOW ALL`.
    Show(Option<String>),
}

/// The one statement in `sql`, with its placeholders rewritten.
///
/// # Errors
/// `TooComplex`, `Invalid` (syntax, several statements), `Unsupported` (a statement that writes).
pub(crate) fn parse(sql: &str, config: &Config) -> Result<Parsed, Error> {
    let tokens = limits::tokens(sql, config)?;
    let (text, found) = placeholders::rewrite(sql, &tokens)?;
    let mut statements = DFParserBuilder::new(text.as_str())
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(PARSER_RECURSION_LIMIT)
        .build()
        .and_then(|mut parser| parser.parse_statements())?;
    let statement = one_of(&mut statements)?;
    uses::check(&statement)?;
    classify(statement, found)
}

/// The query of a view.
///
/// # Errors
/// As [`parse`]; `Invalid` for a view that is not a query or has parameters.
pub(crate) fn parse_view(sql: &str, config: &Config) -> Result<DfStatement, Error> {
    match parse(sql, config)? {
        Parsed::Read(statement, found) if found.ids.is_empty() && is_query(&statement) => Ok(*statement),
        _ => Err(Error::Invalid("a view must be one SELECT without parameters".to_owned())),
    }
}

fn is_query(statement: &DfStatement) -> bool {
    matches!(statement, DfStatement::Statement(statement) if matches!(**statement, SqlStatement::Query(_)))
}

fn one_of(statements: &mut VecDeque<DfStatement>) -> Result<DfStatement, Error> {
    let first = statements.pop_front();
    if statements.is_empty() {
        first.ok_or_else(|| Error::Invalid("the statement is empty".to_owned()))
    } else {
        Err(Error::Invalid("give one statement at a time".to_owned()))
    }
}

fn classify(statement: DfStatement, found: Placeholders) -> Result<Parsed, Error> {
    let DfStatement::Statement(inner) = &statement else {
        return match statement {
            DfStatement::Explain(_) => Ok(Parsed::Read(Box::new(statement), found)),
            DfStatement::Reset(ResetStatement::Variable(name)) => Ok(Parsed::Reset(dotted(&name))),
            DfStatement::CreateExternalTable(_) => Err(refused("CREATE EXTERNAL TABLE")),
            DfStatement::CopyTo(_) => Err(refused("COPY")),
            DfStatement::Statement(_) => unreachable!("the pattern above took it"),
        };
    };
    match &**inner {
        // `DESCRIBE SELECT`; `EXPLAIN` has a statement of DataFusion's own.
        SqlStatement::Explain { analyze: false, statement: explained, .. }
            if matches!(**explained, SqlStatement::Query(_)) =>
        {
            Ok(Parsed::Read(Box::new(statement), found))
        }
        SqlStatement::Query(_)
        | SqlStatement::ExplainTable { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowCreate { .. } => Ok(Parsed::Read(Box::new(statement), found)),
        SqlStatement::Set(set) => parse_set(set),
        SqlStatement::ShowVariable { variable } => {
            let words: Vec<_> = variable.iter().map(|word| word.value.as_str()).collect();
            match words.as_slice() {
                [all] | [all, ..] if all.eq_ignore_ascii_case("all") => Ok(Parsed::Show(None)),
                [time, zone] if time.eq_ignore_ascii_case("time") && zone.eq_ignore_ascii_case("zone") => {
                    Ok(Parsed::Show(Some("time_zone".to_owned())))
                }
                words => Ok(Parsed::Show(Some(words.join(".")))),
            }
        }
        other => {
            let text = other.to_string();
            // The parser writes keywords in capitals: `DROP TABLE`, but `UPDATE` without the name after it.
            let is_keyword = |word: &&str| word.bytes().all(|byte| byte.is_ascii_uppercase());
            let verb: Vec<_> = text.split_whitespace().take_while(is_keyword).take(2).collect();
            Err(refused(&verb.join(" ")))
        }
    }
}

fn refused(verb: &str) -> Error {
    Error::Unsupported(format!(
        "{verb} is not offered; this server answers statements that read: SELECT, EXPLAIN, SHOW, DESCRIBE, and SET of session settings"
    ))
}

fn parse_set(set: &Set) -> Result<Parsed, Error> {
    match set {
        Set::SingleAssignment { variable, values, .. } => {
            let [value] = values.as_slice() else {
                return Err(Error::Invalid("SET takes one value".to_owned()));
            };
            Ok(Parsed::Set(dotted(variable), literal(value)?))
        }
        Set::SetTimeZone { value, .. } => Ok(Parsed::Set("time_zone".to_owned(), literal(value)?)),
        other => Err(Error::Unsupported(format!("{other} is not offered; write SET name = value"))),
    }
}

/// The text of a literal: `'x'`, `"x"`, `x`, `1`, `-1`, `true`.
fn literal(value: &Expr) -> Result<String, Error> {
    match value {
        Expr::Identifier(word) => Ok(word.value.clone()),
        Expr::CompoundIdentifier(words) => {
            Ok(words.iter().map(|word| word.value.as_str()).collect::<Vec<_>>().join("."))
        }
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Ok(format!("-{}", literal(expr)?)),
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => literal(expr),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => Ok(text.clone()),
            Value::Number(text, _) => Ok(text.clone()),
            Value::Boolean(value) => Ok(value.to_string()),
            other => Err(Error::Invalid(format!("SET takes a string, a number or a name, not {other}"))),
        },
        other => Err(Error::Invalid(format!("SET takes a string, a number or a name, not {other}"))),
    }
}

fn dotted(name: &ObjectName) -> String {
    name.0
        .iter()
        .map(|part| part.as_ident().map_or_else(|| part.to_string(), |ident| ident.value.clone()))
        .collect::<Vec<_>>()
        .join(".")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn only_statements_that_read_are_allowed() {
        let mut lines = Vec::new();
        for sql in [
            "SELECT 1",
            "VALUES (1), (2)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE VERBOSE SELECT 1",
            "DESCRIBE t",
            "DESCRIBE SELECT 1",
            "SHOW TABLES",
            "SHOW COLUMNS FROM t",
            "SHOW ALL",
            "SHOW time zone",
            "SHOW batch_size",
            "SET batch_size = 10",
            "SET batch_size TO 10",
            "SET TIME ZONE '+01:00'",
            "SET engine.statement_timeout = '30s'",
            "SET a = -1",
            "SET a = 1, b = 2",
            "SET a = (SELECT 1)",
            "SET ROLE admin",
            "RESET batch_size",
            "",
            " ;; ",
            "SELECT 1;",
            "SELECT 1; SELECT 2",
            "SELEC 1",
            "CREATE TABLE t (a int)",
            "CREATE VIEW v AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "INSERT INTO t VALUES (1)",
            "DELETE FROM t",
            "UPDATE t SET a = 1",
            "DROP TABLE t",
            "TRUNCATE t",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "DEALLOCATE p",
            "BEGIN",
            "COMMIT",
            "GRANT SELECT ON t TO u",
            "CREATE FUNCTION f() RETURNS INT RETURN 1",
            "CALL f()",
            "ANALYZE t",
            "USE x",
        ] {
            let outcome = match parse(sql, &Config::default()) {
                Ok(Parsed::Read(..)) => "read".to_owned(),
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string().split("; this server").next().unwrap_or_default().to_owned(),
            };
            lines.push(format!("{sql}\n    {outcome}"));
        }
        expect![[r#"
            SELECT 1
                read
            VALUES (1), (2)
                read
            WITH a AS (SELECT 1) SELECT * FROM a
                read
            EXPLAIN SELECT 1
                read
            EXPLAIN ANALYZE VERBOSE SELECT 1
                read
            DESCRIBE t
                read
            DESCRIBE SELECT 1
                read
            SHOW TABLES
                read
            SHOW COLUMNS FROM t
                read
            SHOW ALL
                Show(None)
            SHOW time zone
                Show(Some("time_zone"))
            SHOW batch_size
                Show(Some("batch_size"))
            SET batch_size = 10
                Set("batch_size", "10")
            SET batch_size TO 10
                Set("batch_size", "10")
            SET TIME ZONE '+01:00'
                Set("time_zone", "+01:00")
            SET engine.statement_timeout = '30s'
                Set("engine.statement_timeout", "30s")
            SET a = -1
                Set("a", "-1")
            SET a = 1, b = 2
                SET a = 1, b = 2 is not offered; write SET name = value
            SET a = (SELECT 1)
                SET takes a string, a number or a name, not (SELECT 1)
            SET ROLE admin
                SET ROLE admin is not offered; write SET name = value
            RESET batch_size
                Reset("batch_size")

                the statement is empty
             ;; 
                the statement is empty
            SELECT 1;
                read
            SELECT 1; SELECT 2
                give one statement at a time
            SELEC 1
                syntax error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1
            CREATE TABLE t (a int)
                CREATE TABLE is not offered
            CREATE VIEW v AS SELECT 1
                CREATE VIEW is not offered
            CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'
                CREATE EXTERNAL TABLE is not offered
            COPY (SELECT 1) TO '/tmp/x.csv'
                COPY is not offered
            INSERT INTO t VALUES (1)
                INSERT INTO is not offered
            DELETE FROM t
                DELETE FROM is not offered
            UPDATE t SET a = 1
                UPDATE is not offered
            DROP TABLE t
                DROP TABLE is not offered
            TRUNCATE t
                TRUNCATE is not offered
            PREPARE p AS SELECT 1
                PREPARE is not offered
            EXECUTE p
                EXECUTE is not offered
            DEALLOCATE p
                DEALLOCATE is not offered
            BEGIN
                BEGIN is not offered
            COMMIT
                COMMIT is not offered
            GRANT SELECT ON t TO u
                GRANT SELECT is not offered
            CREATE FUNCTION f() RETURNS INT RETURN 1
                CREATE FUNCTION is not offered
            CALL f()
                CALL is not offered
            ANALYZE t
                ANALYZE is not offered
            USE x
                USE is not offered"#]]
        .assert_eq(&lines.join("\n"));
    }
}
