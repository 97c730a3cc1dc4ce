//! One walk over a plan, from its scans up, adding what each operator holds to what those below it do.

use std::sync::Arc;

use datafusion::arrow::datatypes::Schema;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::explain::ExplainExec;
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, StatisticsArgs, StatisticsContext};
use updraft_hot::HotSource;

use super::operators::{self, Manner, Place};
use super::phases::Phases;
use super::scan::{self, Scan};
use super::width::Widths;
use crate::dense::DenseAggregateExec;
use crate::fit::SlicesExec;

/// Rows that the tables of `information_schema` are taken to have; nothing else of ours streams tables.
const METADATA_ROWS: u64 = 10_000;

/// What a plan adds up to beside the needs of its root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    pub(super) appetite_known: bool,
    /// The most of any operator.
    pub(super) partitions: usize,
    pub(super) scan_bytes: u64,
    pub(super) scan_rows: Option<u64>,
    pub(super) packed: bool,
    /// Sorts that may spill, each partition counted.
    pub(super) sorts: u64,
    /// Operators that may spill, each partition counted.
    pub(super) spillers: u64,
    /// The largest batch that one of them spills.
    pub(super) spilled_batch: u64,
    /// What a sort holds of a row to compare it, for a hundred bytes of the row; of that sort where it is most.
    pub(super) compared: u64,
}

impl Sums {
    /// Counts in an operator that may spill batches of `batch` bytes in each partition.
    pub(super) fn spills(&mut self, partitions: u64, batch: u64) {
        self.spillers = self.spillers.saturating_add(partitions);
        self.spilled_batch = self.spilled_batch.max(batch);
    }
}

/// What an operator and all below it need.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Need {
    pub(super) unaccounted: Phases,
    pub(super) minimum: Phases,
    pub(super) appetite: Phases,
    /// Bytes of one batch it gives.
    pub(super) batch: u64,
    /// Bytes that such a batch keeps alive beside its rows.
    pinned: u64,
    /// The most rows it gives, whatever the data.
    pub(super) rows_max: u64,
    /// The most rows that it or any operator below it gives.
    pub(super) rows_max_below: u64,
    /// It holds tasks that begin to read as soon as the plan is started, before anybody asks for rows.
    is_eager: bool,
}

/// The state of the walk.
pub(super) struct Walk {
    batch_rows: u64,
    widths: Widths,
    statistics: StatisticsContext,
    /// How many partitions of the operator that comes next are at work one after the other.
    slices: u64,
    pub(super) sums: Sums,
}

/// Weighs `plan`, whose batches have `batch_size` rows.
pub(super) fn weigh(plan: &dyn ExecutionPlan, batch_size: usize) -> (Need, Sums) {
    let sums = Sums {
        appetite_known: true,
        partitions: 1,
        scan_bytes: 0,
        scan_rows: Some(0),
        packed: false,
        sorts: 0,
        spillers: 0,
        spilled_batch: 0,
        compared: 0,
    };
    let statistics = StatisticsContext::new();
    let mut walk = Walk { batch_rows: batch_size as u64, widths: Widths::default(), statistics, slices: 1, sums };
    let root = walk.visit(plan);
    (root, walk.sums)
}

impl Walk {
    fn visit(&mut self, plan: &dyn ExecutionPlan) -> Need {
        let partitions = plan.output_partitioning().partition_count();
        let at_once = partitions as u64 / self.slices;
        self.slices = plan.downcast_ref::<SlicesExec>().map_or(1, |slices| slices.slices() as u64);
        self.sums.partitions = self.sums.partitions.max(partitions);
        if let Some(source) = plan.downcast_ref::<DataSourceExec>() {
            return self.source(source, partitions as u64);
        }
        let children = plan.children();
        let inputs: Vec<Need> = children.iter().map(|child| self.visit(child.as_ref())).collect();
        self.learn(plan);

        let rows_max = rows_max(plan, &inputs);
        let rows = self.batch_rows.min(rows_max);
        let batch = rows.saturating_mul(self.row(&plan.schema()));
        let from = children.first().map_or(1, |child| child.output_partitioning().partition_count());
        let input = inputs.iter().map(|input| input.batch).max().unwrap_or_default();
        let pinned = inputs.iter().fold(0, |sum: u64, input| sum.saturating_add(input.pinned));
        let given = inputs.iter().fold(0, |sum: u64, input| sum.saturating_add(input.rows_max));
        let place = Place { partitions: at_once, from: from as u64, rows, batch, input, pinned, given };
        let (manner, own) = operators::own(self, plan, place);
        let merges = plan.is::<CoalescePartitionsExec>() || plan.is::<SortPreservingMergeExec>();
        Need {
            unaccounted: combine(manner, own.unaccounted, &inputs, |input| input.unaccounted),
            minimum: combine(manner, own.minimum, &inputs, |input| input.minimum),
            appetite: combine(manner, own.appetite.max(own.minimum), &inputs, |input| input.appetite),
            batch,
            // A group's values are copied; whatever else becomes of a string, it points to where it was.
            pinned: if aggregate(plan).is_some() { 0 } else { pinned },
            rows_max,
            rows_max_below: inputs.iter().map(|input| input.rows_max_below).fold(rows_max, u64::max),
            is_eager: (merges && from > 1) || inputs.iter().any(|input| input.is_eager),
        }
    }

    fn source(&mut self, source: &DataSourceExec, partitions: u64) -> Need {
        let data = source.data_source();
        let scan = if let Some(files) = data.downcast_ref::<FileScanConfig>() {
            scan::of(files, &mut self.widths)
        } else if let Some(hot) = data.downcast_ref::<HotSource>() {
            scan::of_hot(hot, partitions, &mut self.widths)
        } else {
            // The rows are there already; batches are slices of them.
            let memory = data.downcast_ref::<MemorySourceConfig>();
            let rows = memory.map(|memory| memory.partitions().iter().flatten().map(|batch| batch.num_rows() as u64));
            Scan { lanes: partitions, rows: rows.map(Iterator::sum), ..Scan::default() }
        };
        let sums = &mut self.sums;
        sums.scan_bytes = sums.scan_bytes.saturating_add(scan.bytes);
        sums.scan_rows = sums.scan_rows.zip(scan.rows).map(|(sum, rows)| sum.saturating_add(rows));
        sums.packed |= scan.packed;
        // A row of a file takes a byte, if only for the end of its line.
        let rows = scan.rows.unwrap_or(scan.bytes);
        let rows_max = source.fetch().map_or(rows, |fetch| rows.min((fetch as u64).saturating_mul(partitions)));
        let batch = self.batch_rows.min(rows_max).saturating_mul(self.row(&source.schema()));
        // One batch is decoded while the one before is worked on.
        let own = scan.held.saturating_add(scan.lanes.saturating_mul(2).saturating_mul(batch));
        let pinned = scan.pinned;
        Need { unaccounted: Phases::leaf(own), batch, pinned, rows_max, rows_max_below: rows_max, ..Need::default() }
    }

    /// Follows the columns that are given another name.
    fn learn(&mut self, plan: &dyn ExecutionPlan) {
        if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
            let schema = projection.input().schema();
            for projected in projection.expr() {
                self.widths.alias(&projected.alias, &projected.expr, &schema);
            }
        }
        if let Some(aggregate) = aggregate(plan) {
            let schema = aggregate.input_schema();
            for (expr, name) in aggregate.group_expr().expr() {
                self.widths.alias(name, expr, &schema);
            }
            for function in aggregate.aggr_expr() {
                if let [argument] = function.expressions().as_slice() {
                    self.widths.alias(function.name(), argument, &schema);
                }
            }
        }
    }

    /// Bytes of a row.
    pub(super) fn row(&self, schema: &Schema) -> u64 {
        self.widths.row(schema)
    }

    /// Bytes of one value of `key`, of columns in `schema`, as it is compared with others.
    pub(super) fn sortable(&self, key: &Arc<dyn PhysicalExpr>, schema: &Schema) -> u64 {
        self.widths.sortable(key, schema)
    }

    /// How many rows `plan` gives, if its statistics tell.
    pub(super) fn rows(&self, plan: &dyn ExecutionPlan) -> Option<u64> {
        let known = self.statistics.compute(plan, &StatisticsArgs::new()).ok()?;
        known.num_rows.get_value().map(|rows| *rows as u64)
    }

    /// Bytes of all rows that `plan` gives, with `more` for each.
    pub(super) fn bytes(&self, plan: &dyn ExecutionPlan, more: u64) -> Option<u64> {
        let row = self.row(&plan.schema()).saturating_add(more);
        self.rows(plan).map(|rows| rows.saturating_mul(row))
    }

    /// Twice `bytes`: as they are, and once more while they are sorted, put together or given away. If they are
    /// not known, the appetite of the plan is not either.
    pub(super) fn twice(&mut self, bytes: Option<u64>) -> u64 {
        self.sums.appetite_known &= bytes.is_some();
        bytes.unwrap_or_default().saturating_mul(2)
    }
}

/// The aggregate that `plan` is, or what it does as one of DataFusion's.
fn aggregate(plan: &dyn ExecutionPlan) -> Option<&AggregateExec> {
    plan.downcast_ref::<AggregateExec>()
        .or_else(|| plan.downcast_ref::<DenseAggregateExec>().map(|dense| dense.stock()))
}

/// The most rows that `plan` gives, whatever the data.
fn rows_max(plan: &dyn ExecutionPlan, inputs: &[Need]) -> u64 {
    let partitions = plan.output_partitioning().partition_count() as u64;
    // All pairs of a join; the rows of a single input.
    let of_inputs = || inputs.iter().fold(1, |product: u64, input| product.saturating_mul(input.rows_max));
    let rows = if plan.is::<PlaceholderRowExec>() {
        1
    } else if plan.is::<EmptyExec>() {
        0
    } else if plan.is::<StreamingTableExec>() || plan.is::<ExplainExec>() {
        METADATA_ROWS
    } else if inputs.is_empty() || plan.is::<UnnestExec>() || plan.is::<RecursiveQueryExec>() {
        u64::MAX
    } else if plan.is::<UnionExec>() || plan.is::<InterleaveExec>() {
        inputs.iter().fold(0, |sum: u64, input| sum.saturating_add(input.rows_max))
    } else if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        let group = aggregate.group_expr();
        match group.is_true_no_grouping() {
            true => partitions,
            false => of_inputs().saturating_mul(group.groups().len().max(1) as u64),
        }
    } else if inputs.len() > 1 {
        // An outer join gives the rows without a partner too.
        inputs.iter().fold(of_inputs(), |rows, input| rows.saturating_add(input.rows_max))
    } else {
        of_inputs()
    };
    plan.fetch().map_or(rows, |fetch| rows.min((fetch as u64).saturating_mul(partitions)))
}

fn combine(manner: Manner, own: u64, inputs: &[Need], part: impl Fn(&Need) -> Phases) -> Phases {
    match (manner, inputs) {
        (_, []) => Phases::leaf(own),
        (Manner::Blocking, [input]) => part(input).blocking(own),
        (_, [input]) => part(input).passing(own),
        (Manner::Building, [build, probe]) if !probe.is_eager => part(build).building(own, part(probe)),
        _ => Phases::side_by_side(inputs.iter().map(part), own),
    }
}
