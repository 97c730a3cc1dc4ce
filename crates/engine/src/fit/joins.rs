//! Hash joins whose build side will not fit become sort-merge joins.
//!
//! A hash join of DataFusion 55.2 holds its whole build side and cannot spill (apache/datafusion#24768); the
//! two sorts of a merge join can. Which is quicker does not matter for a side that does not fit.

use std::sync::Arc;

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinSide, JoinType, NullEquality, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::{JoinFilter, JoinOnRef};
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

use super::kept::Kept;
use super::{Fit, size};

/// A build side takes its batches, their copy in one piece, and a table of its rows.
const BUILD_FACTOR: usize = 3;

/// When an estimate was wrong before, a build side stays that is at most this part of the room.
const CAREFUL_PART: usize = 16;

/// Replaces the joins that do not fit. Must run between the choice of sides and `EnsureRequirements`.
#[derive(Debug)]
pub(super) struct FitJoins;

impl PhysicalOptimizerRule for FitJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let fit = config.extensions.get::<Fit>();
        let largest = fit.map(|fit| largest_build(&plan, fit));
        plan.transform_up(|node| {
            if let (Some(fit), Some(largest)) = (fit, largest)
                && let Some(join) = node.downcast_ref::<HashJoinExec>()
                && !join.null_aware
                && can_merge(join.on(), &join.left().schema(), *join.join_type())
                && build_bytes(join, fit) > largest
            {
                return Ok(Transformed::yes(merge_join(join)?));
            }
            // The planner's own, which it makes without `prefer_hash_join`.
            if let Some(join) = node.downcast_ref::<SortMergeJoinExec>() {
                let (sides, on) = ([&join.left, &join.right], &join.on);
                let (filter, nulls) = (join.filter.as_ref(), join.null_equality);
                let is_right = can_merge(on, &join.left.schema(), join.join_type);
                let joined = if is_right { merge } else { hash };
                return Ok(Transformed::yes(joined(sides, on, filter, join.join_type, nulls)?));
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &str {
        "FitJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The largest build side that may stay. The tables of joins that feed each other are in memory together,
/// so the small ones are let in first, until the room is taken.
fn largest_build(plan: &Arc<dyn ExecutionPlan>, fit: &Fit) -> usize {
    if fit.careful {
        return fit.room / CAREFUL_PART;
    }
    let mut builds = Vec::new();
    collect(plan, fit, &mut builds);
    let together = |largest: usize| {
        builds.iter().filter(|bytes| **bytes <= largest).fold(0_usize, |sum, bytes| sum.saturating_add(*bytes))
    };
    builds.iter().copied().filter(|bytes| together(*bytes) <= fit.room).max().unwrap_or(0)
}

fn collect(plan: &Arc<dyn ExecutionPlan>, fit: &Fit, builds: &mut Vec<usize>) {
    builds.extend(plan.downcast_ref::<HashJoinExec>().map(|join| build_bytes(join, fit)));
    for child in plan.children() {
        collect(child, fit, builds);
    }
}

/// What the build side of `join` takes. Without statistics it is let in at first, and not again.
fn build_bytes(join: &HashJoinExec, fit: &Fit) -> usize {
    let build = join.left().as_ref();
    let bytes = if fit.careful { size::at_most(build).unwrap_or(usize::MAX) } else { size::likely(build).unwrap_or(0) };
    bytes.saturating_mul(BUILD_FACTOR)
}

/// Whether a merge join of DataFusion 55.2 on these keys, of which there must be one, gives the rows of a hash join. (What
/// `NOT IN` makes of a NULL it does not know either.)
///
/// Its inputs are sorted with -0.0 before 0.0, which it takes for equal: what is sorted by another key is out of order then.
/// And where it only looks whether there is a partner, it compares fewer types when a batch ends, and panics at NaN.
fn can_merge(on: JoinOnRef<'_>, left: &Schema, join_type: JoinType) -> bool {
    let only_looks = match join_type {
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => false,
        JoinType::LeftSemi | JoinType::RightSemi | JoinType::LeftAnti | JoinType::RightAnti => true,
        JoinType::LeftMark | JoinType::RightMark => true,
    };
    let is_right = |key: &DataType| match key {
        key if key.is_floating() => !only_looks && on.len() == 1,
        key => !only_looks || is_compared(key),
    };
    !on.is_empty() && on.iter().all(|(key, _)| key.data_type(left).is_ok_and(|key| is_right(&key)))
}

/// The types that `compare_join_arrays` of DataFusion 55.2 knows, but for floats.
fn is_compared(key: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, Decimal128, FixedSizeBinary, LargeBinary, LargeUtf8, Null,
        Timestamp, Utf8, Utf8View,
    };
    key.is_integer()
        || matches!(key, Null | Boolean | Date32 | Date64 | Decimal128(..) | Timestamp(_, None))
        || matches!(key, Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_))
}

/// The merge join that gives the same columns as `join`.
fn merge_join(join: &HashJoinExec) -> Result<Arc<dyn ExecutionPlan>> {
    let sides = [join.left(), join.right()];
    let merge = merge(sides, join.on(), join.filter(), *join.join_type(), join.null_equality())?;
    let Some(columns) = &join.projection else { return Ok(merge) };
    let schema = merge.schema();
    let columns = columns.iter().map(|index| {
        let name = schema.field(*index).name();
        ProjectionExpr { expr: Arc::new(Column::new(name, *index)), alias: name.clone() }
    });
    Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), merge)?))
}

/// The hash join that gives the same columns as a merge join of the planner's.
fn hash(
    [left, right]: [&Arc<dyn ExecutionPlan>; 2],
    on: JoinOnRef<'_>,
    filter: Option<&JoinFilter>,
    join_type: JoinType,
    nulls: NullEquality,
) -> Result<Arc<dyn ExecutionPlan>> {
    let (left, right, mode) = (Arc::clone(left), Arc::clone(right), PartitionMode::Partitioned);
    let join = HashJoinExec::try_new(left, right, on.to_vec(), filter.cloned(), &join_type, None, mode, nulls, false)?;
    Ok(Arc::new(join))
}

fn merge(
    [left, right]: [&Arc<dyn ExecutionPlan>; 2],
    on: JoinOnRef<'_>,
    filter: Option<&JoinFilter>,
    join_type: JoinType,
    null_equality: NullEquality,
) -> Result<Arc<dyn ExecutionPlan>> {
    let (left, right, filter) = (Arc::clone(left), Arc::clone(right), filter.map(merge_filter).transpose()?);
    let options = vec![SortOptions::default(); on.len()];
    let join = SortMergeJoinExec::try_new(left, right, on.to_vec(), filter, join_type, options, null_equality)?;
    Ok(Arc::new(Kept { input: Arc::new(join) }))
}

/// `filter` with the columns of the left side before those of the right. A merge join takes them in that order
/// whatever the filter says, and gives wrong rows for one that was swapped with its sides. And it evaluates the
/// filter of an outer join on rows without a partner too, where every column is NULL.
fn merge_filter(filter: &JoinFilter) -> Result<JoinFilter> {
    let columns = filter.column_indices();
    let mut order: Vec<_> = (0..columns.len()).collect();
    order.sort_by_key(|index| columns[*index].side != JoinSide::Left);
    let mut moved = vec![0; columns.len()];
    for (to, from) in order.iter().enumerate() {
        moved[*from] = to;
    }
    let expression = Arc::clone(filter.expression()).transform(|node| {
        Ok(match node.downcast_ref::<Column>() {
            Some(column) => Transformed::yes(Arc::new(Column::new(column.name(), moved[column.index()]))),
            None => Transformed::no(node),
        })
    });
    let schema = filter.schema();
    let fields = order.iter().map(|index| schema.field(*index).clone().with_nullable(true));
    let schema = Schema::new(fields.collect::<Vec<_>>());
    let columns = order.iter().map(|index| columns[*index].clone()).collect();
    Ok(JoinFilter::new(expression.data()?, columns, Arc::new(schema)))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::datasource::MemTable;
    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::physical_plan::{collect as run, displayable};
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    /// `rows` rows in batches of 7: a key with duplicates and NULLs, another as text, a number of its own.
    fn table(rows: i64, keys: i64) -> Arc<MemTable> {
        let key = |row: i64| (row % 5 != 3).then_some(row * 7919 % keys);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("k", Arc::new((0..rows).map(key).collect::<Int64Array>())),
            (
                "t",
                Arc::new(
                    (0..rows)
                        .map(|row| key(row + 1).map(|key| format!("text {}", key % 3)))
                        .collect::<StringViewArray>(),
                ),
            ),
            ("v", Arc::new((0..rows).collect::<Int64Array>())),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let slices = (0..batch.num_rows()).step_by(7).map(|at| batch.slice(at, 7.min(batch.num_rows() - at)));
        let batches: Vec<_> = slices.collect();
        let batches = if batches.is_empty() { vec![batch.clone()] } else { batches };
        Arc::new(MemTable::try_new(batch.schema(), vec![batches]).expect("batches of one schema"))
    }

    fn context(partitions: usize, fit: Option<Fit>) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(16);
        if let Some(fit) = fit {
            config.options_mut().extensions.insert(fit);
        }
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .with_physical_optimizer_rules(super::super::rules())
            .build();
        let context = SessionContext::new_with_state(state);
        for (name, rows, keys) in [("a", 60, 20), ("b", 45, 25), ("none", 0, 1)] {
            context.register_table(name, table(rows, keys)).expect("a name of its own");
        }
        context
    }

    async fn plan(context: &SessionContext, sql: &str) -> (String, String) {
        let plan = context.sql(sql).await.expect(sql).create_physical_plan().await.expect(sql);
        let shown = displayable(plan.as_ref()).indent(false).to_string();
        let batches = run(plan, context.task_ctx()).await.expect(sql);
        let mut rows: Vec<_> =
            pretty_format_batches(&batches).expect("it prints").to_string().lines().map(str::to_owned).collect();
        rows.sort_unstable();
        (shown, rows.join("\n"))
    }

    #[tokio::test]
    async fn merge_joins_give_what_hash_joins_gave() {
        const CAREFUL: Fit = Fit { room: 1, share: 1, careful: true };
        let mut queries = Vec::new();
        for join in [
            "JOIN",
            "LEFT JOIN",
            "RIGHT JOIN",
            "FULL JOIN",
            "LEFT SEMI JOIN",
            "LEFT ANTI JOIN",
            "RIGHT SEMI JOIN",
            "RIGHT ANTI JOIN",
        ] {
            for on in [
                "x.k = y.k",
                "x.k = y.k AND x.t = y.t",
                "x.k = y.k AND x.v < y.v",
                "x.k + 1 = y.k - 1",
                "x.k IS NOT DISTINCT FROM y.k",
                "x.k = y.k AND x.k = y.v",
            ] {
                for (left, right) in [("a", "b"), ("a", "none"), ("none", "b")] {
                    queries.push(format!("SELECT * FROM {left} x {join} {right} y ON {on}"));
                }
            }
        }
        for sql in [
            // The filter needs a column that the result does not.
            "SELECT x.v, y.v FROM a x LEFT JOIN b y ON x.k = y.k AND x.t < y.t",
            "SELECT y.v, x.v, y.t FROM a x FULL JOIN b y ON x.k = y.k AND x.v < y.v + x.k",
            "SELECT y.v, x.t FROM a x JOIN b y ON x.k = y.k",
            "SELECT v FROM a WHERE v > 50 OR EXISTS (SELECT 1 FROM b WHERE b.k = a.k AND b.v > a.v)",
            "SELECT v FROM a WHERE v > 50 OR NOT EXISTS (SELECT 1 FROM b WHERE b.k = a.k)",
            "SELECT k, t FROM a INTERSECT SELECT k, t FROM b",
            "SELECT k, t FROM a EXCEPT SELECT k, t FROM b",
            "SELECT x.v, y.v, z.v FROM a x JOIN b y ON x.k = y.k LEFT JOIN a z ON z.v = y.v AND z.k > x.k",
            "SELECT count(*), sum(x.v) FROM a x JOIN b y USING (k) JOIN a z USING (k)",
        ] {
            queries.push(sql.to_owned());
        }
        for partitions in [1, 3] {
            let (stock, careful) = (context(partitions, None), context(partitions, Some(CAREFUL)));
            let merging = context(partitions, None);
            merging.state_ref().write().config_mut().options_mut().optimizer.prefer_hash_join = false;
            for sql in &queries {
                let (expected_plan, expected) = plan(&stock, sql).await;
                let (shown, rows) = plan(&careful, sql).await;
                assert_eq!(rows, expected, "{partitions} partitions: {sql}\n{shown}");
                let (planned, rows) = plan(&merging, sql).await;
                assert_eq!(rows, expected, "as planned, {partitions} partitions: {sql}\n{planned}");
                if expected_plan.contains("HashJoinExec") && !sql.contains("none") {
                    assert!(shown.contains("SortMergeJoin") && !shown.contains("HashJoin"), "{sql}\n{shown}");
                }
            }
        }
    }

    #[tokio::test]
    async fn only_what_does_not_fit_is_replaced() {
        const SQL: &str = "SELECT x.v, y.v, z.v FROM a x JOIN b y ON x.k = y.k JOIN a z ON z.v = y.v";
        let joins = async |fit| {
            let (shown, _) = plan(&context(2, fit), SQL).await;
            (shown.matches("HashJoinExec").count(), shown.matches("SortMergeJoin").count())
        };
        // Two columns of 45 rows. The other join builds what this one gives, of which little is known.
        let small = 45 * 16 * BUILD_FACTOR;
        for (fit, expected) in [
            (None, (2, 0)),
            (Some(Fit { room: 1 << 20, share: 1 << 20, careful: false }), (2, 0)),
            (Some(Fit { room: small, share: small, careful: false }), (1, 1)),
            (Some(Fit { room: small - 1, share: small - 1, careful: false }), (0, 2)),
            (Some(Fit { room: 1 << 20, share: 1 << 20, careful: true }), (1, 1)),
            (Some(Fit { room: small * CAREFUL_PART, share: small * CAREFUL_PART, careful: true }), (1, 1)),
            (Some(Fit { room: (small - 1) * CAREFUL_PART, share: (small - 1) * CAREFUL_PART, careful: true }), (0, 2)),
        ] {
            assert_eq!(joins(fit).await, expected, "{fit:?} {}", plan(&context(2, fit), SQL).await.0);
        }
    }

    #[tokio::test]
    async fn joins_that_a_merge_join_does_not_get_right_stay_hash_joins() {
        const CAREFUL: Fit = Fit { room: 1, share: 1, careful: true };
        let zeros = "SELECT arrow_cast(CASE WHEN v % 2 = 0 THEN '-0.0' ELSE '0.0' END, 'Float64') AS f, v, k FROM a";
        let floats = |table| {
            format!(
                "SELECT CASE WHEN k % 3 = 0 THEN arrow_cast('NaN', 'Float64') ELSE CAST(k AS DOUBLE) END AS f FROM {table}"
            )
        };
        let cast = |table, to| format!("SELECT arrow_cast(k, '{to}') AS f FROM {table}");
        let mut queries = vec![
            format!("SELECT x.v FROM ({zeros}) x JOIN ({zeros}) y ON x.f = y.f AND x.v = y.v"),
            format!("SELECT x.v, y.v FROM ({zeros}) x LEFT JOIN ({zeros}) y ON x.f = y.f AND x.k = y.k AND x.v < y.v"),
        ];
        let mut both = vec![(floats("a"), floats("b"))];
        for to in [
            "Timestamp(Second, Some(\"UTC\"))",
            "Time64(Nanosecond)",
            "Duration(Second)",
            "Float32",
            "Decimal256(40, 2)",
        ] {
            both.push((cast("a", to), cast("b", to)));
        }
        for (a, b) in both {
            queries.push(format!("SELECT f FROM ({a}) x WHERE f IN (SELECT f FROM ({b}) y)"));
            queries.push(format!("SELECT f FROM ({a}) x WHERE NOT EXISTS (SELECT 1 FROM ({b}) y WHERE x.f = y.f)"));
            queries.push(format!("{a} INTERSECT {b}"));
        }
        for partitions in [1, 3] {
            let (stock, careful) = (context(partitions, None), context(partitions, Some(CAREFUL)));
            let merging = context(partitions, Some(CAREFUL));
            merging.state_ref().write().config_mut().options_mut().optimizer.prefer_hash_join = false;
            for sql in &queries {
                let expected = plan(&stock, sql).await.1;
                for context in [&careful, &merging] {
                    let (shown, rows) = plan(context, sql).await;
                    assert_eq!(rows, expected, "{partitions} partitions: {sql}\n{shown}");
                    assert!(shown.contains("HashJoin") && !shown.contains("SortMergeJoin"), "{sql}\n{shown}");
                }
            }
        }
    }

    #[tokio::test]
    async fn not_in_stays_as_it_is() {
        let sql = "SELECT v FROM a WHERE k NOT IN (SELECT k FROM b)";
        let (shown, rows) = plan(&context(2, Some(Fit { room: 1, share: 1, careful: true })), sql).await;
        assert!(shown.contains("HashJoinExec"), "{shown}");
        assert_eq!(rows, plan(&context(2, None), sql).await.1);
    }
}
