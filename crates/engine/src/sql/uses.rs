//! How large a statement becomes once each part that `WITH` names stands where it is used.
//!
//! DataFusion plans such a part at each of its uses. Parts that use each other twice double at every step, so that a kilobyte of
//! text never ends to be planned. This counts them first.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Visit, Visitor};

use crate::error::Error;

/// The most tables and queries that a statement may come to.
const USES_MAX: u64 = 10_000;

/// # Errors
/// `TooComplex` for a statement that comes to more.
pub(super) fn check(statement: &DfStatement) -> Result<(), Error> {
    let statement = match statement {
        DfStatement::Statement(statement) => statement,
        DfStatement::Explain(explain) => return check(&explain.statement),
        _ => return Ok(()),
    };
    let mut uses = Uses { sums: vec![0], ..Uses::default() };
    let ControlFlow::Continue(()) = statement.visit(&mut uses) else { return Ok(()) };
    // What is named is planned even if nothing uses it.
    if uses.sums.iter().chain(uses.named.values()).any(|sum| *sum > USES_MAX) {
        return Err(Error::TooComplex(format!(
            "it comes to more than {USES_MAX} tables and queries; a part that WITH names counts each time it is used"
        )));
    }
    Ok(())
}

/// What is counted while a statement is walked through.
#[derive(Debug, Default)]
struct Uses {
    /// For the statement, and for each query that is being walked through, what there was in it so far.
    sums: Vec<u64>,
    /// What the parts come to that are named, in lower case.
    named: HashMap<String, u64>,
    /// Where the queries are that name them, and what they are called.
    bodies: HashMap<usize, String>,
}

impl Uses {
    fn add(&mut self, uses: u64) {
        if let Some(sum) = self.sums.last_mut() {
            *sum = sum.saturating_add(uses);
        }
    }
}

fn place(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

impl Visitor for Uses {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        for part in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.bodies.insert(place(&part.query), part.alias.name.value.to_lowercase());
        }
        self.sums.push(1);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let sum = self.sums.pop().unwrap_or_default();
        match self.bodies.remove(&place(query)) {
            Some(name) => {
                self.named.insert(name, sum);
            }
            None => self.add(sum),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = relation.0.last().and_then(|part| part.as_ident()).map(|name| name.value.to_lowercase());
        let known = name.and_then(|name| self.named.get(&name)).copied();
        self.add(known.unwrap_or(1));
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use crate::config::Config;
    use crate::error::Error;

    #[test]
    fn a_part_counts_each_time_it_is_used() {
        let doubling = |levels: usize| {
            let level = |n: usize| format!("C{n} AS (SELECT * FROM (SELECT * FROM c{} p) a, c{} q)", n - 1, n - 1);
            let levels: Vec<_> =
                std::iter::once("c0 AS (SELECT 1)".to_owned()).chain((1..=levels).map(level)).collect();
            levels.join(", ")
        };
        let inside =
            format!("WITH a AS (WITH {} SELECT * FROM c20) SELECT 1 FROM t WHERE x IN (SELECT * FROM a)", doubling(20));
        for (is_refused, sql) in [
            (false, format!("WITH {} SELECT * FROM c8", doubling(8))),
            (true, format!("WITH {} SELECT * FROM c12", doubling(12))),
            (true, format!("EXPLAIN WITH {} SELECT * FROM c100", doubling(100))),
            (true, format!("WITH {} SELECT 1", doubling(100))),
            (true, inside),
            (false, format!("SELECT * FROM a{}", ", a".repeat(1999))),
            (
                false,
                "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT * FROM r JOIN r s USING (x)) SELECT * FROM r"
                    .to_owned(),
            ),
        ] {
            let outcome = parse(&sql, &Config::default());
            let start: String = sql.chars().take(60).collect();
            match outcome {
                Err(Error::TooComplex(_)) => assert!(is_refused, "{start}"),
                Err(error) => panic!("{start}: {error}"),
                Ok(_) => assert!(!is_refused, "{start}"),
            }
        }
    }
}
