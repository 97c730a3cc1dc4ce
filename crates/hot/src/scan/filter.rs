//! Predicates, one after the other, each on the columns that it names.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, BooleanBufferBuilder, PrimitiveArray, RecordBatch,
    RecordBatchOptions, make_comparator,
};
use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::compute::kernels::cmp::eq;
use datafusion::arrow::compute::{SortOptions, concat};
use datafusion::arrow::datatypes::{ArrowNativeType, DataType, Schema, SchemaRef, UInt8Type, UInt16Type};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LikeExpr, Literal, NotExpr,
};
use datafusion::physical_expr::utils::collect_columns;

use super::dynamic::Dynamic;
use super::rows::{Rows, Values, keeping};
use super::segments::is_plainly_ordered;

/// Rows that are looked at together: what is in between stays in the processor's nearest caches.
const BLOCK: usize = 16 << 10;

/// A predicate over some columns.
#[derive(Debug, Clone)]
pub(super) struct Conjunct {
    /// Over `schema`.
    expr: Arc<dyn PhysicalExpr>,
    schema: SchemaRef,
    /// Places of its columns among those that the scan needs.
    columns: Vec<usize>,
    cost: Cost,
    /// It says that its one column is below, at or above a value.
    limit: Option<(Operator, ArrayRef)>,
    /// What it says of the codes of the segment that was looked at last.
    codes: Option<(u32, Option<Codes>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// A comparison of numbers.
    Cheap,
    /// Anything else that never fails.
    Dear,
    /// It may fail on a row that another predicate leaves out, so it sees only rows that all before it keep.
    MayFail,
}

/// What a predicate says of each code of a dictionary, and of NULL.
#[derive(Debug, Clone)]
struct Codes {
    passes: Vec<bool>,
    null_passes: bool,
}

impl Conjunct {
    /// `expr` over the columns of `table`, of which the scan needs those numbered `needed`, ascending.
    pub(super) fn new(expr: &Arc<dyn PhysicalExpr>, table: &Schema, needed: &[usize]) -> Result<Self> {
        let mut own: Vec<usize> = collect_columns(expr).iter().map(Column::index).collect();
        own.sort_unstable();
        own.dedup();
        let schema = Arc::new(table.project(&own)?);
        let columns = own.iter().filter_map(|column| needed.binary_search(column).ok()).collect();
        let expr = relocate(expr, &own)?;
        let fixed = schema.fields().iter().all(|field| field.data_type().primitive_width().is_some());
        let cost = match (fixed, never_fails(&expr)) {
            (true, true) => Cost::Cheap,
            (false, true) => Cost::Dear,
            (_, false) => Cost::MayFail,
        };
        let limit = limit(&expr, &schema);
        Ok(Self { expr, schema, columns, cost, limit, codes: None })
    }

    /// Which of the rows `range` pass; those that `before` leaves out may count as not passing.
    fn evaluate(
        &mut self,
        rows: &Rows,
        range: &Range<usize>,
        before: Option<&BooleanBuffer>,
    ) -> Result<Option<BooleanBuffer>> {
        if let [place] = self.columns[..]
            && let Values::Coded(data) = &rows.columns[place]
            && let Some(codes) = self.codes(rows.number, data)
        {
            return Ok(codes.look_up(data, range));
        }
        let kept = before.map_or(range.len(), BooleanBuffer::count_set_bits);
        let few = match self.cost {
            Cost::Cheap => kept < range.len() / 64,
            Cost::Dear => kept < range.len() / 2,
            Cost::MayFail => kept < range.len(),
        };
        let keep = keeping(before.filter(|_| few), self.columns.len());
        let columns = self.columns.iter().map(|place| rows.columns[*place].gather(range, keep.as_ref()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let passing = passing(&self.expr, &self.schema, columns, if few { kept } else { range.len() })?;
        Ok(match (before.filter(|_| few), passing) {
            (Some(before), Some(passing)) => Some(spread(before, &passing)),
            (Some(before), None) => Some(before.clone()),
            (None, passing) => passing,
        })
    }

    fn codes(&mut self, number: u32, data: &ArrayRef) -> Option<&Codes> {
        if self.codes.as_ref().is_none_or(|(known, _)| *known != number) {
            // A predicate that fails on a value is asked row by row: the row may be one that another leaves out.
            let codes = Codes::new(&self.expr, &self.schema, data.as_any_dictionary().values()).ok();
            self.codes = Some((number, codes));
        }
        self.codes.as_ref().and_then(|(_, codes)| codes.as_ref())
    }
}

impl Codes {
    fn new(expr: &Arc<dyn PhysicalExpr>, schema: &SchemaRef, values: &ArrayRef) -> Result<Self> {
        let null = ScalarValue::try_new_null(values.data_type())?.to_array()?;
        let values = concat(&[values.as_ref(), null.as_ref()])?;
        let len = values.len();
        let mut passes = match passing(expr, schema, vec![values], len)? {
            Some(passing) => passing.iter().collect(),
            None => vec![true; len],
        };
        let null_passes = passes.pop().unwrap_or(false);
        Ok(Self { passes, null_passes })
    }

    fn look_up(&self, data: &ArrayRef, range: &Range<usize>) -> Option<BooleanBuffer> {
        if self.null_passes && self.passes.iter().all(|passes| *passes) {
            return None;
        }
        let keys = data.as_any_dictionary().keys();
        Some(match keys.data_type() {
            DataType::UInt8 => self.look_up_in(keys.as_primitive::<UInt8Type>(), range),
            _ => self.look_up_in(keys.as_primitive::<UInt16Type>(), range),
        })
    }

    fn look_up_in<T: ArrowPrimitiveType>(&self, keys: &PrimitiveArray<T>, range: &Range<usize>) -> BooleanBuffer {
        let mut passing = (0..).zip(&self.passes).filter_map(|(code, passes)| passes.then_some(code));
        if let (Some(only), None, false) = (passing.next(), passing.next(), self.null_passes)
            && let Some(only) = T::Native::from_usize(only)
            && let Ok(equal) = eq(&keys.slice(range.start, range.len()), &PrimitiveArray::<T>::new_scalar(only))
        {
            return true_bits(&equal);
        }
        let codes = &keys.values()[range.clone()];
        // The code under a NULL may be any.
        let passes = |at: usize| self.passes.get(codes[at].as_usize()).copied().unwrap_or(false);
        let bits = BooleanBuffer::collect_bool(range.len(), passes);
        let Some(nulls) = keys.nulls().filter(|nulls| nulls.null_count() > 0) else { return bits };
        let valid = nulls.inner().slice(range.start, range.len());
        if self.null_passes { &(&bits & &valid) | &!&valid } else { &bits & &valid }
    }
}

/// The predicates of a scan in the order in which they are asked, and which rows pass them all.
#[derive(Debug, Clone, Default)]
pub(super) struct Conjuncts {
    list: Vec<Conjunct>,
}

impl Conjuncts {
    pub(super) fn new(exprs: &[Arc<dyn PhysicalExpr>], table: &Schema, needed: &[usize]) -> Result<Self> {
        let list = exprs.iter().map(|expr| Conjunct::new(expr, table, needed));
        let mut list = list.collect::<Result<Vec<_>>>()?;
        // Stable: those that may fail stay in the order in which they were written.
        list.sort_by_key(|conjunct| conjunct.cost);
        Ok(Self { list })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Leaves out rows at the ends of `rows` by looking for limits in columns that are sorted.
    pub(super) fn narrow(&self, rows: &mut Rows, is_sorted: impl Fn(usize) -> bool) {
        for (number, conjunct) in self.list.iter().enumerate() {
            if let ([place], Some((operator, limit))) = (&conjunct.columns[..], &conjunct.limit)
                && let Values::Plain(data) = &rows.columns[*place]
                && is_sorted(*place)
                && let Some(range) = within(data, *operator, limit)
            {
                let start = rows.range.start.max(range.start);
                rows.range = start..rows.range.end.min(range.end).max(start);
                rows.passed.push(number);
            }
        }
    }

    /// Which of the first rows of `range` pass all predicates, the `dynamic` ones too: of as many as it takes to find `enough`,
    /// or of all. Returns where those rows end, and their mask; `None` = all of them pass.
    pub(super) fn passing(
        &mut self,
        rows: &Rows,
        range: &Range<usize>,
        enough: usize,
        mut dynamic: Option<&mut Dynamic>,
    ) -> Result<(usize, Option<BooleanBuffer>)> {
        let mut all = Mask::default();
        let mut end = range.start;
        while end < range.end && all.kept < enough {
            let block = end..range.end.min(end + BLOCK);
            let mut mask = None;
            for (number, conjunct) in self.list.iter_mut().enumerate() {
                if !rows.passed.contains(&number) && !is_empty(&mask) {
                    mask = narrowed(conjunct, rows, &block, mask)?;
                }
            }
            if let Some(dynamic) = dynamic.as_deref_mut().filter(|_| !is_empty(&mask)) {
                mask = dynamic.narrow(rows, &block, mask);
            }
            all.append(block.len(), mask.as_ref());
            end = block.end;
        }
        Ok((end, all.finish()))
    }
}

fn is_empty(mask: &Option<BooleanBuffer>) -> bool {
    mask.as_ref().is_some_and(|mask| mask.set_indices().next().is_none())
}

/// `mask`, less the rows of `block` that do not pass `conjunct`.
pub(super) fn narrowed(
    conjunct: &mut Conjunct,
    rows: &Rows,
    block: &Range<usize>,
    mask: Option<BooleanBuffer>,
) -> Result<Option<BooleanBuffer>> {
    let passing = conjunct.evaluate(rows, block, mask.as_ref())?;
    Ok(match (mask, passing) {
        (Some(mask), Some(passing)) => Some(&mask & &passing),
        (mask, passing) => mask.or(passing),
    })
}

/// A mask that is put together from those of blocks, and made only when a block has one.
#[derive(Default)]
struct Mask {
    done: usize,
    kept: usize,
    bits: Option<BooleanBufferBuilder>,
}

impl Mask {
    fn append(&mut self, len: usize, mask: Option<&BooleanBuffer>) {
        let kept = mask.map_or(len, BooleanBuffer::count_set_bits);
        if self.bits.is_none() && kept < len {
            let mut bits = BooleanBufferBuilder::new(self.done + len);
            bits.append_n(self.done, true);
            self.bits = Some(bits);
        }
        self.done += len;
        self.kept += kept;
        match (&mut self.bits, mask) {
            (Some(bits), Some(mask)) => bits.append_buffer(mask),
            (Some(bits), None) => bits.append_n(len, true),
            (None, _) => {}
        }
    }

    fn finish(self) -> Option<BooleanBuffer> {
        self.bits.map(|mut bits| bits.finish())
    }
}

/// Which of `len` rows pass; `None` = all.
fn passing(
    expr: &Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    len: usize,
) -> Result<Option<BooleanBuffer>> {
    let options = RecordBatchOptions::new().with_row_count(Some(len));
    let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
    Ok(match expr.evaluate(&batch)? {
        ColumnarValue::Scalar(ScalarValue::Boolean(Some(true))) => None,
        ColumnarValue::Scalar(_) => Some(BooleanBuffer::new_unset(len)),
        ColumnarValue::Array(array) => Some(true_bits(array.as_boolean())),
    })
}

/// Whether `expr` is the same for all rows, and that is `value`.
pub(super) fn is_constant(expr: &Arc<dyn PhysicalExpr>, value: bool) -> bool {
    let literal = expr.downcast_ref::<Literal>().map(Literal::value);
    matches!(literal, Some(ScalarValue::Boolean(Some(constant))) if *constant == value)
}

/// Where `array` is true, and not NULL.
fn true_bits(array: &BooleanArray) -> BooleanBuffer {
    match array.nulls() {
        Some(nulls) => array.values() & nulls.inner(),
        None => array.values().clone(),
    }
}

/// `before`, of which the rows that it keeps are kept if `passing`, which has a bit for each of those, says so.
fn spread(before: &BooleanBuffer, passing: &BooleanBuffer) -> BooleanBuffer {
    let mut bits = BooleanBufferBuilder::new(before.len());
    bits.append_n(before.len(), false);
    for (at, row) in before.set_indices().enumerate() {
        if passing.value(at) {
            bits.set_bit(row, true);
        }
    }
    bits.finish()
}

/// `expr`, in which the column numbered `own[i]` is the one numbered `i`.
pub(super) fn relocate(expr: &Arc<dyn PhysicalExpr>, own: &[usize]) -> Result<Arc<dyn PhysicalExpr>> {
    let moved = |node: Arc<dyn PhysicalExpr>| {
        let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
        Ok(match own.binary_search(&column.index()) {
            Ok(place) => Transformed::yes(Arc::new(Column::new(column.name(), place)) as Arc<dyn PhysicalExpr>),
            Err(_) => Transformed::no(node),
        })
    };
    expr.clone().transform_down(moved).data()
}

/// Whether evaluating `expr` cannot fail, whatever the rows.
pub(super) fn never_fails(expr: &Arc<dyn PhysicalExpr>) -> bool {
    let mut safe = true;
    let looked = expr.apply(|node| {
        let is_comparison = |binary: &BinaryExpr| {
            matches!(
                binary.op(),
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::And
                    | Operator::Or
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
            )
        };
        safe = node.is::<Column>()
            || node.is::<Literal>()
            || node.is::<NotExpr>()
            || node.is::<IsNullExpr>()
            || node.is::<IsNotNullExpr>()
            || node.is::<InListExpr>()
            || node.is::<LikeExpr>()
            || node.downcast_ref::<BinaryExpr>().is_some_and(is_comparison);
        Ok(if safe { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    looked.is_ok() && safe
}

/// `column < value` and the like, over the only column of `schema`.
fn limit(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Option<(Operator, ArrayRef)> {
    let [field] = &schema.fields()[..] else { return None };
    let binary = expr.downcast_ref::<BinaryExpr>()?;
    let is_limit = |operator: &Operator| {
        matches!(operator, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq)
    };
    let (operator, literal) = match (binary.left(), binary.right()) {
        (left, right) if left.is::<Column>() => (*binary.op(), right.downcast_ref::<Literal>()?),
        (left, right) if right.is::<Column>() => (binary.op().swap()?, left.downcast_ref::<Literal>()?),
        _ => return None,
    };
    let value = literal.value();
    let usable = is_limit(&operator) && !value.is_null() && value.data_type() == *field.data_type();
    // Zeros and NaN have an order here that comparisons of floats do not follow everywhere.
    (usable && is_plainly_ordered(field.data_type())).then(|| value.to_array().ok()).flatten().map(|v| (operator, v))
}

/// The rows of `sorted`, which ascends and has no NULL, that are `operator` `limit`.
fn within(sorted: &ArrayRef, operator: Operator, limit: &ArrayRef) -> Option<Range<usize>> {
    let compare = make_comparator(sorted, limit, SortOptions::default()).ok()?;
    let len = sorted.len();
    let first = |passed: &dyn Fn(usize) -> bool| {
        let (mut low, mut high) = (0, len);
        while low < high {
            let middle = low + (high - low) / 2;
            if passed(middle) { high = middle } else { low = middle + 1 }
        }
        low
    };
    let not_below = || first(&|row| compare(row, 0).is_ge());
    let above = || first(&|row| compare(row, 0).is_gt());
    Some(match operator {
        Operator::Eq => not_below()..above(),
        Operator::Lt => 0..not_below(),
        Operator::LtEq => 0..above(),
        Operator::Gt => above()..len,
        Operator::GtEq => not_below()..len,
        _ => return None,
    })
}
