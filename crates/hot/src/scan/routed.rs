//! Filters of joins whose sides are split between partitions.
//!
//! Such a join says of each partition which keys it has: `CASE partition_of(key) WHEN 0 THEN key IN (..) WHEN 1 THEN ..`. To
//! find the partition of each row, to ask each for its rows and to put the answers together costs more than the answers. So
//! of a few keys those of all partitions are asked for at once. A row whose key another partition has would pass, and none
//! has: who made the filter looks again itself.

use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, CaseExpr, InListExpr, in_list};
use datafusion::physical_expr::utils::conjunction;
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};

use super::filter::is_constant;

/// `filter` over `table`, or what lets all its rows pass and is asked faster: bounds, and one list of keys.
pub(super) fn together(filter: &Arc<dyn PhysicalExpr>, table: &Schema) -> Vec<Arc<dyn PhysicalExpr>> {
    filter.downcast_ref::<CaseExpr>().and_then(|case| merged(case, table)).unwrap_or_else(|| vec![filter.clone()])
}

fn merged(case: &CaseExpr, table: &Schema) -> Option<Vec<Arc<dyn PhysicalExpr>>> {
    case.expr()?;
    if !case.else_expr().is_none_or(|other| is_constant(other, false)) {
        return None;
    }
    let mut key: Option<&Arc<dyn PhysicalExpr>> = None;
    let (mut keys, mut bounds) = (Vec::new(), Vec::new());
    for (_, then) in case.when_then_expr() {
        if is_constant(then, false) {
            continue;
        }
        let (lists, others): (Vec<_>, Vec<_>) =
            split_conjunction(then).into_iter().partition(|part| part.is::<InListExpr>());
        let [list] = lists[..] else { return None };
        let list = list.downcast_ref::<InListExpr>().filter(|list| !list.negated())?;
        if *key.get_or_insert(list.expr()) != list.expr() {
            return None;
        }
        keys.extend_from_slice(list.list());
        bounds.push(conjunction(others.into_iter().cloned()));
    }
    let any = |a: Arc<dyn PhysicalExpr>, b| Arc::new(BinaryExpr::new(a, Operator::Or, b)) as _;
    Some(vec![bounds.into_iter().reduce(any)?, in_list(key?.clone(), keys, &false, table).ok()?])
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{AsArray, Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::{DataType, Field};
    use datafusion::physical_expr::expressions::{col, lit};

    use super::*;

    /// `CASE key % 2 WHEN 0 THEN .. WHEN 1 THEN .. ELSE otherwise END` over some keys, and what passes of 0..10.
    fn passing(lists: [Option<Vec<i64>>; 2], otherwise: bool) -> (usize, Vec<i64>) {
        let schema = Arc::new(Schema::new(vec![Field::new("key", DataType::Int64, true)]));
        let key = col("key", &schema).expect("a column");
        let binary = |op, value: i64| Arc::new(BinaryExpr::new(key.clone(), op, lit(value))) as Arc<dyn PhysicalExpr>;
        let thens = lists.into_iter().zip(0_i64..).map(|(keys, number)| {
            let then = match keys {
                None => lit(false),
                Some(keys) => {
                    let most = binary(Operator::LtEq, keys.iter().copied().max().unwrap_or_default());
                    let list =
                        in_list(key.clone(), keys.into_iter().map(lit).collect(), &false, &schema).expect("a list");
                    conjunction([most, list])
                }
            };
            (lit(number), then)
        });
        let case = CaseExpr::try_new(Some(binary(Operator::Modulo, 2)), thens.collect(), Some(lit(otherwise)))
            .expect("a case");
        let parts = together(&(Arc::new(case) as _), &schema);
        let rows = Int64Array::from_iter((0..10).map(Some).chain([None]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(rows)]).expect("a batch");
        let passes = conjunction(parts.iter().cloned()).evaluate(&batch).and_then(|passes| passes.into_array(11));
        let passes = passes.expect("an answer");
        (
            parts.len(),
            (0..).zip(passes.as_boolean()).filter_map(|(at, passes)| (passes == Some(true)).then_some(at)).collect(),
        )
    }

    #[test]
    fn keys_of_all_partitions_are_asked_for_at_once() {
        assert_eq!(passing([Some(vec![2, 8]), Some(vec![5])], false), (2, vec![2, 5, 8]));
        assert_eq!(passing([None, Some(vec![5, 3])], false), (2, vec![3, 5]));
        assert_eq!(passing([Some(vec![]), Some(vec![1])], false), (2, vec![1]));
    }

    #[test]
    fn what_is_not_known_of_a_partition_stays_open() {
        assert_eq!(passing([Some(vec![2]), Some(vec![5])], true).0, 1);
        assert_eq!(passing([None, None], false), (1, vec![]));
    }
}
