//! The leaf of a plan over a table that is hot in part or as a whole.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Statistics;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::{DataSource, DataSourceExec, OpenArgs};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, DynamicFilterTracking};
use datafusion::physical_expr::projection::{ProjectionExpr, ProjectionExprs};
use datafusion::physical_expr::utils::{collect_columns, conjunction};
use datafusion::physical_expr::{
    EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr, split_conjunction,
};
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_plan::execution_plan::SchedulingType;
use datafusion::physical_plan::filter_pushdown::{FilterPushdownPropagation, PushedDown};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan, SortOrderPushdownResult};

use super::access::Scan;
use super::queue::{Executions, Queue};
use super::rows::coded_type;
use super::segments::Segments;
use super::stream::stream;
use super::{cold, estimate};
use crate::cache::Cache;

pub use super::estimate::Outlook;

/// The fewest rows that are worth a partition of their own.
const ROWS_PER_PARTITION: usize = 8192;
/// The most rows that a partition takes at a time.
const MORSEL_ROWS: usize = 64 << 10;
/// The same when filters leave few of them.
const FILTERED_MORSEL_ROWS: usize = 128 << 10;
/// How many times each partition comes to take rows, at least: none waits long for the last.
const TURNS: usize = 8;
/// When fewer than one row in so many passes, they are sorted in less time than the other cores save by looking for them: a
/// row takes some hundred nanoseconds to sort, and one or two to be left out.
const FEW: f64 = 64.0;

/// Scans a table's row groups: columns that are in memory from there, the others from their files.
///
/// Filters are exact: what the source takes on, no row passes that it does not let through.
#[derive(Debug, Clone)]
pub struct HotSource {
    pub(super) base: Arc<FileScanConfig>,
    pub(super) segments: Arc<Segments>,
    pub(super) cache: Arc<Cache>,
    pub(super) table: Arc<str>,
    /// The segments to scan, in the order of the files.
    kept: Arc<[u32]>,
    /// Those of them in which rows may pass the filters.
    may_pass: OnceLock<Arc<[u32]>>,
    /// The most rows that can pass the filters, and the share of them that does, if it was found out.
    pub(super) sampled: OnceLock<(usize, Option<f64>)>,
    /// The share of rows that pass, when files are read with the filters in the reader.
    late: OnceLock<Option<f64>>,
    partitions: usize,
    /// Columns only.
    pub(super) projection: ProjectionExprs,
    schema: SchemaRef,
    /// For each column of `schema` whether it is given as codes.
    coded: Vec<bool>,
    /// All of them, over the columns of the table.
    pub(super) filters: Vec<Arc<dyn PhysicalExpr>>,
    /// Those that other operators make while they run, over the columns of the table.
    pub(super) dynamic: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) fetch: Option<usize>,
    /// Another scan of the plan looks at most of its columns too.
    pub(super) is_asked_again: bool,
    /// The column by which a TopK above sorts, and whether it wants the largest.
    promise: Option<(usize, bool)>,
    /// The column by which its rows are known to be sorted, and how a plan says so.
    order: Option<(usize, SortOptions)>,
    metrics: ExecutionPlanMetricsSet,
}

impl HotSource {
    /// The scan that `node` is, if it is one of the hot-table cache.
    pub fn of(node: &dyn ExecutionPlan) -> Option<&Self> {
        node.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref()
    }

    /// A scan of all columns of `table` (`schema.name`).
    ///
    /// `base` is the scan of Parquet files that there would be without `cache`: of all columns, without filter or limit.
    /// `files` are the places of its files among those of `segments`, whose order it has; `None` = it has them all.
    /// The rows are split between `partitions`, or fewer when they are few.
    pub fn new(
        base: FileScanConfig,
        segments: Arc<Segments>,
        files: Option<&[usize]>,
        cache: Arc<Cache>,
        table: Arc<str>,
        partitions: usize,
    ) -> Self {
        let kept = files.map_or_else(|| segments.all(), |files| segments.of_files(files));
        let schema = segments.schema().clone();
        let columns: Vec<usize> = (0..schema.fields().len()).collect();
        let mut source = Self {
            base: Arc::new(base),
            cache,
            table,
            kept: kept.into(),
            may_pass: OnceLock::new(),
            sampled: OnceLock::new(),
            late: OnceLock::new(),
            partitions: 1,
            projection: ProjectionExprs::from_indices(&columns, &schema),
            coded: vec![false; columns.len()],
            schema,
            filters: Vec::new(),
            dynamic: Vec::new(),
            fetch: None,
            is_asked_again: false,
            promise: None,
            order: None,
            metrics: ExecutionPlanMetricsSet::new(),
            segments,
        };
        source.partitions = source.worth(partitions);
        source
    }

    /// The same scan of some columns of the table, `None` = of all.
    ///
    /// # Errors
    /// A column does not exist.
    pub fn with_columns(&self, columns: Option<&[usize]>) -> Result<Self> {
        let Some(columns) = columns else { return Ok(self.clone()) };
        let projection = ProjectionExprs::from_indices(columns, self.segments.schema());
        self.projected(projection, vec![false; columns.len()])
    }

    /// The same scan of at most `rows` rows, any of them; `None` = of all.
    pub fn with_rows(&self, rows: Option<usize>) -> Self {
        let mut source = Self { fetch: rows, ..self.fresh() };
        source.partitions = source.worth(self.partitions);
        source
    }

    /// The same scan, which gives the strings of `columns` (of its output) as `Dictionary(UInt32, Utf8View)`: as codes,
    /// which differ from row group to row group, with the very same array of strings for all batches of one that is stored
    /// so. `None` when it would not save anything: no column of strings, or its values differ too much to be stored as codes.
    pub fn with_coded(&self, columns: &[usize]) -> Option<Self> {
        let mut coded = self.coded.clone();
        for column in columns {
            if self.schema.fields().get(*column)?.data_type() != &DataType::Utf8View
                || !estimate::is_coded(self, *column)
            {
                return None;
            }
            coded[*column] = true;
        }
        self.projected(self.projection.clone(), coded).ok()
    }

    /// The same scan, of whose columns another scan of the plan looks at most too.
    pub(super) fn asked_again(&self) -> Self {
        Self { is_asked_again: true, ..self.fresh() }
    }

    /// Whether both read the same version of the same table.
    pub(super) fn is_of_table(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.segments, &other.segments)
    }

    /// The scan of files that there would be without the cache: of all columns, without filter or limit.
    pub fn files(&self) -> &FileScanConfig {
        &self.base
    }

    /// The columns of the table that are looked at, by their numbers, ascending.
    pub fn columns(&self) -> Vec<usize> {
        let mut columns = self.projection.column_indices();
        let filters = self.filters.iter().chain(&self.dynamic);
        columns.extend(filters.flat_map(collect_columns).map(|column| column.index()));
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// What each column of the output is of the table.
    pub fn projection(&self) -> &ProjectionExprs {
        &self.projection
    }

    /// How much there is to scan, and how much of it is in memory now.
    pub fn outlook(&self) -> Outlook {
        estimate::outlook(self)
    }

    /// The same scan in one partition, whose rows come in `order`. `None` = they do not, or it is not known; or so few pass
    /// the filters that sorting them takes less time than looking for them in one partition.
    pub(super) fn in_order_of(&self, order: &[PhysicalSortExpr]) -> Option<Self> {
        let [by] = order else { return None };
        let column = self.column_of(by.expr.downcast_ref::<Column>()?.index())?;
        // With a limit the first rows are meant by which it is sorted already.
        let may_change = self.order.is_none() && !self.coded.contains(&true);
        if by.options.descending || !may_change || !self.segments.is_sorted(column, &self.cache) {
            return None;
        }
        let few = |share: f64| share * FEW < 1.0;
        let is_faster = self.partitions == 1 || !estimate::rows_and_share(self).1.is_some_and(few);
        // Files are read and decoded by all partitions.
        let in_order = || Self { partitions: 1, promise: None, order: Some((column, by.options)), ..self.fresh() };
        (is_faster && self.outlook().absent_segments == 0).then(in_order)
    }

    /// Segments in which rows may pass the filters, as far as it is known before they are looked at.
    pub(super) fn may_pass(&self) -> &[u32] {
        self.may_pass.get_or_init(|| {
            if self.filters.is_empty() {
                return self.kept.clone();
            }
            let filter = conjunction(self.filters.iter().cloned());
            let may_pass = self.segments.may_pass(&self.kept, &filter, Some(&self.cache));
            may_pass.map_or_else(|| self.kept.clone(), Into::into)
        })
    }

    /// Whether columns that no filter names are read from files for those rows alone that pass the filters.
    pub(super) fn reads_late(&self) -> bool {
        self.late().is_some()
    }

    /// The share of rows that pass the filters, when it is so.
    pub(super) fn late(&self) -> Option<f64> {
        *self.late.get_or_init(|| cold::late(self))
    }

    /// How many segments the filters leave out before they are looked at.
    pub(super) fn left_out(&self) -> usize {
        self.kept.len() - self.may_pass().len()
    }

    pub(super) fn coded(&self) -> &[bool] {
        &self.coded
    }

    fn rows(&self) -> usize {
        self.kept.iter().map(|segment| self.segments.get(*segment).rows).sum()
    }

    /// As many of `partitions` as are worth it for the rows that may pass.
    fn worth(&self, partitions: usize) -> usize {
        let rows = if self.filters.is_empty() { self.rows() } else { estimate::rows_and_share(self).0 };
        let rows = rows.min(self.fetch.unwrap_or(usize::MAX));
        partitions.min(rows.div_ceil(ROWS_PER_PARTITION)).max(1)
    }

    /// A copy with metrics of its own.
    fn fresh(&self) -> Self {
        Self { metrics: ExecutionPlanMetricsSet::new(), ..self.clone() }
    }

    fn projected(&self, projection: ProjectionExprs, coded: Vec<bool>) -> Result<Self> {
        let schema = projection.project_schema(self.segments.schema())?;
        let fields = schema.fields().iter().zip(&coded).map(|(field, coded)| match coded {
            true => Arc::new(Field::clone(field).with_data_type(coded_type())),
            false => field.clone(),
        });
        let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()));
        Ok(Self { projection, schema, coded, late: OnceLock::new(), ..self.fresh() })
    }

    /// The column of the table that a column of the output is.
    pub(super) fn column_of(&self, output: usize) -> Option<usize> {
        let projected = self.projection.iter().nth(output)?;
        projected.expr.downcast_ref::<Column>().map(Column::index)
    }

    /// What the filters say of the columns of the output.
    fn equal_columns(&self) -> EquivalenceProperties {
        let whole = || EquivalenceProperties::new(self.schema.clone());
        // A value that a column is known to have is of the type it had before it was given as codes.
        if self.filters.is_empty() || self.coded.contains(&true) {
            return whole();
        }
        let table = self.segments.schema();
        let mut properties = EquivalenceProperties::new(table.clone());
        for filter in &self.filters {
            let equal = filter.downcast_ref::<BinaryExpr>().filter(|binary| *binary.op() == Operator::Eq);
            if let Some(equal) = equal
                && properties.add_equal_conditions(equal.left().clone(), equal.right().clone()).is_err()
            {
                return whole();
            }
        }
        match self.projection.projection_mapping(table) {
            Ok(mapping) => properties.project(&mapping, self.schema.clone()),
            Err(_) => whole(),
        }
    }

    fn queue(&self, segments: impl IntoIterator<Item = u32>) -> Queue {
        let filters = !self.filters.is_empty() || !self.dynamic.is_empty();
        let most = if filters { FILTERED_MORSEL_ROWS } else { MORSEL_ROWS };
        let share = match self.partitions {
            1 => most,
            partitions => self.rows() / (partitions * TURNS),
        };
        Queue::new(segments, share.clamp(ROWS_PER_PARTITION, most), self.fetch)
    }

    fn in_order(&self) -> Vec<u32> {
        match self.promise {
            Some((column, descending)) => self.segments.by_promise(self.may_pass(), column, descending),
            None => self.may_pass().to_vec(),
        }
    }
}

impl DataSource for HotSource {
    fn open(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.open_with_args(OpenArgs::new(partition, context))
    }

    fn open_with_args(&self, args: OpenArgs) -> Result<SendableRecordBatchStream> {
        let OpenArgs { partition, context, sibling_state } = args;
        let executions = sibling_state.as_ref().and_then(|state| state.downcast_ref::<Executions>());
        let queue = match executions {
            Some(executions) => executions.queue(&context, partition, self.partitions, || self.queue(self.in_order())),
            // Nobody to share with: every so many segments are this partition's.
            None => Arc::new(self.queue(self.in_order().into_iter().skip(partition).step_by(self.partitions))),
        };
        let scan = Scan::new(self, &self.schema)?;
        scan.begin(&queue);
        Ok(stream(scan, queue, context, partition, &self.metrics))
    }

    fn create_sibling_state(&self, config: &ConfigOptions) -> Option<Arc<dyn Any + Send + Sync>> {
        let shares = config.execution.enable_file_stream_work_stealing;
        shares.then(|| Arc::new(Executions::default()) as _)
    }

    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        let Outlook { segments, absent_segments, .. } = self.outlook();
        let columns: Vec<String> = self.projection.iter().map(|projected| projected.alias.clone()).collect();
        if matches!(t, DisplayFormatType::TreeRender) {
            writeln!(f, "table={}", self.table)?;
            return writeln!(f, "hot={}, cold={absent_segments}", segments - absent_segments);
        }
        write!(
            f,
            "HotSource: table={}, files={}",
            self.table,
            self.base.file_groups.iter().map(|g| g.len()).sum::<usize>()
        )?;
        write!(f, ", hot={}, cold={absent_segments}, pruned={}", segments - absent_segments, self.left_out())?;
        write!(f, ", projection=[{}]", columns.join(", "))?;
        for (name, filters) in [("filters", &self.filters), ("dynamic_filters", &self.dynamic)] {
            if !filters.is_empty() {
                let filters: Vec<String> = filters.iter().map(|filter| filter.to_string()).collect();
                write!(f, ", {name}=[{}]", filters.join(", "))?;
            }
        }
        if let Some(fetch) = self.fetch {
            write!(f, ", limit={fetch}")?;
        }
        if let Some((column, descending)) = self.promise {
            let direction = if descending { "largest" } else { "smallest" };
            write!(f, ", first={direction} {}", self.segments.schema().field(column).name())?;
        }
        if let Some((column, _)) = self.order {
            write!(f, ", order={}", self.segments.schema().field(column).name())?;
        }
        Ok(())
    }

    fn repartitioned(
        &self,
        target_partitions: usize,
        _repartition_file_min_size: usize,
        _output_ordering: Option<LexOrdering>,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        let partitions = if self.order.is_some() { 1 } else { self.worth(target_partitions) };
        Ok((partitions > self.partitions).then(|| Arc::new(Self { partitions, ..self.fresh() }) as _))
    }

    fn output_partitioning(&self) -> Partitioning {
        Partitioning::UnknownPartitioning(self.partitions)
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        let mut properties = self.equal_columns();
        if let Some((column, options)) = self.order {
            for (output, field) in self.schema.fields().iter().enumerate() {
                if self.column_of(output) == Some(column) {
                    let by = Arc::new(Column::new(field.name(), output));
                    properties.add_ordering([PhysicalSortExpr::new(by, options)]);
                }
            }
        }
        properties
    }

    fn scheduling_type(&self) -> SchedulingType {
        SchedulingType::Cooperative
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let share = partition.filter(|_| self.partitions > 1).map(|_| self.partitions);
        estimate::statistics(self, &self.schema, share).map(Arc::new)
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        Some(Arc::new(self.with_rows(limit)))
    }

    fn fetch(&self) -> Option<usize> {
        self.fetch
    }

    fn metrics(&self) -> ExecutionPlanMetricsSet {
        self.metrics.clone()
    }

    fn try_swapping_with_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn DataSource>>> {
        let columns = projection.iter().map(|projected| projected.expr.downcast_ref::<Column>().map(Column::index));
        // Whatever is computed is computed above, from what the filters leave.
        let Some(columns) = columns.collect::<Option<Vec<usize>>>() else { return Ok(None) };
        let own: Vec<&ProjectionExpr> = self.projection.iter().collect();
        let merged = projection.iter().zip(&columns).map(|(outer, column)| {
            let own = own.get(*column)?;
            Some(ProjectionExpr::new(own.expr.clone(), outer.alias.clone()))
        });
        let Some(merged) = merged.collect::<Option<Vec<_>>>() else { return Ok(None) };
        let coded = columns.iter().map(|column| self.coded[*column]).collect();
        Ok(Some(Arc::new(self.projected(ProjectionExprs::new(merged), coded)?)))
    }

    fn try_pushdown_filters(
        &self,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _config: &ConfigOptions,
    ) -> Result<FilterPushdownPropagation<Arc<dyn DataSource>>> {
        let (mut taken, mut dynamic) = (self.filters.clone(), self.dynamic.clone());
        let mut answers = Vec::with_capacity(filters.len());
        for filter in &filters {
            let is_coded =
                || collect_columns(filter).iter().any(|column| self.coded.get(column.index()) == Some(&true));
            // After a limit, a filter sees the rows of the limit alone.
            let of_table = match self.fetch.is_some() || is_volatile(filter) || is_coded() {
                true => None,
                false => self.projection.unproject_expr(filter).ok(),
            };
            answers.push(match of_table {
                None => PushedDown::No,
                // Used, not promised: it may not be asked of every row.
                Some(of_table) if DynamicFilterTracking::classify(&of_table).contains_dynamic_filter() => {
                    dynamic.push(of_table);
                    PushedDown::No
                }
                Some(of_table) => {
                    taken.extend(split_conjunction(&of_table).into_iter().cloned());
                    PushedDown::Yes
                }
            });
        }
        let answer = FilterPushdownPropagation::with_parent_pushdown_result(answers);
        if taken.len() == self.filters.len() && dynamic.len() == self.dynamic.len() {
            return Ok(answer);
        }
        let mut source = Self { dynamic, ..self.fresh() };
        if taken.len() > self.filters.len() {
            let (may_pass, sampled, late) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
            source = Self { filters: taken, may_pass, sampled, late, ..source };
            source.partitions = source.worth(self.partitions);
        }
        Ok(answer.with_updated_node(Arc::new(source)))
    }

    /// Segments that promise the rows that are wanted come first; the sort above stays.
    fn try_pushdown_sort(&self, order: &[PhysicalSortExpr]) -> Result<SortOrderPushdownResult<Arc<dyn DataSource>>> {
        // Others are not to come first.
        if self.order.is_some() {
            return Ok(SortOrderPushdownResult::Unsupported);
        }
        let first = order.first().and_then(|first| Some((first.expr.downcast_ref::<Column>()?, first.options)));
        let column = first.and_then(|(column, options)| Some((self.column_of(column.index())?, options.descending)));
        Ok(match column.filter(|(column, _)| self.segments.has_bounds(*column)) {
            Some(promise) => {
                let inner = Arc::new(Self { promise: Some(promise), ..self.fresh() });
                SortOrderPushdownResult::Inexact { inner }
            }
            None => SortOrderPushdownResult::Unsupported,
        })
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let columns = self.projection.iter().map(|projected| &projected.expr);
        for expr in columns.chain(&self.filters).chain(&self.dynamic) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
}
