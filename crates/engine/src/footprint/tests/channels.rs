//! Batches that wait between operators, and groups that are there twice.

use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalSortExpr, expressions};
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;

use super::super::walk;
use super::*;

const ROWS: u64 = 8192;

/// What `plan` holds without reserving it, and the least it reserves, in batches of one number.
fn batches(plan: &Arc<dyn ExecutionPlan>) -> (u64, u64) {
    let (need, _) = walk::weigh(plan.as_ref(), ROWS as usize);
    (need.unaccounted.peak() / (8 * ROWS), need.minimum.peak() / (8 * ROWS))
}

#[tokio::test]
async fn a_channel_holds_batches_of_all_that_it_connects() {
    let lake = Lake::new().await;
    for from in [1, 2, 8] {
        let scan = lake.plan("SELECT id FROM wide", from).await;
        assert_eq!(scan.output_partitioning().partition_count(), from);
        let below = batches(&scan);
        let above = |plan: Arc<dyn ExecutionPlan>| {
            let (held, reserved) = batches(&plan);
            (held - below.0, reserved - below.1)
        };
        let inputs = from as u64;
        for to in [2, 16] {
            let exchange = RepartitionExec::try_new(Arc::clone(&scan), Partitioning::RoundRobinBatch(to));
            let (held, reserved) = above(Arc::new(exchange.expect("an exchange")));
            assert!(held >= inputs + to as u64, "{held}: one is cut up for each input, one filled for each output");
            assert!(reserved >= to as u64, "{reserved}: each output has a channel");
        }
        let (held, reserved) = above(Arc::new(CoalescePartitionsExec::new(Arc::clone(&scan))));
        assert!(held >= inputs, "{held}: one of each of {from} waits");
        assert_eq!(reserved, 0, "nobody counts them");
        let order = PhysicalSortExpr::new_default(expressions::col("id", &scan.schema()).expect("a column"));
        let order = LexOrdering::new([order]).expect("an order");
        let (held, reserved) = above(Arc::new(SortPreservingMergeExec::new(order, Arc::clone(&scan))));
        assert!(held >= inputs, "{held}: one of each of {from} is read ahead");
        assert!(from == 1 || reserved >= 2 * inputs, "{reserved}: another is merged, with its rows in sortable form");
    }
}

#[tokio::test]
async fn groups_are_there_twice_while_they_are_given() {
    let lake = Lake::new().await;
    let texts = 80_000 * 216;
    for (sql, partitions) in [
        ("SELECT comment, count(*) FROM wide GROUP BY comment", 1),
        ("SELECT comment, count(*) FROM wide GROUP BY comment", 4),
        ("SELECT few, array_agg(comment) FROM wide GROUP BY few", 1),
    ] {
        let appetite = lake.weigh(sql, partitions).await.appetite.expect("a file tells how many rows it has");
        assert!(appetite >= 2 * texts, "{sql}: {appetite} of {texts} bytes");
    }
}
