//! The distinct values of all groups in one table.
//!
//! What is stored is pairs of a group and a value, in the table that DataFusion keeps the groups of GROUP BY in.
//! It reserves what it holds, and is dropped as a whole when the aggregate spills.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt64Array, make_array,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{and, cast, filter, is_not_null, take};
use datafusion::arrow::datatypes::{DataType, Field, Schema, UInt64Type};
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// Whether values of this type can be counted here.
pub(super) fn countable(values: &DataType) -> bool {
    // In the others, equal values can be told apart by their bytes.
    values.is_primitive() || stored(values) != *values || matches!(values, DataType::Boolean)
}

/// How values of this type are stored: floats by their bits, which is how `count` tells them apart; and strings
/// in one piece, because a view array starts with a block of 2 MiB.
fn stored(values: &DataType) -> DataType {
    match values {
        DataType::Float16 => DataType::UInt16,
        DataType::Float32 => DataType::UInt32,
        DataType::Float64 => DataType::UInt64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::LargeUtf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::LargeBinary,
        _ => values.clone(),
    }
}

/// `values` as another type, of which they are the bits or the text.
fn convert(values: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    if values.data_type() == to {
        return Ok(Arc::clone(values));
    }
    if values.data_type().is_primitive() {
        return Ok(make_array(values.to_data().into_builder().data_type(to.clone()).build()?));
    }
    Ok(cast(values, to)?)
}

/// Counts the distinct values of each group.
pub(super) struct DistinctCounts {
    value_type: DataType,
    pairs: Option<Box<dyn GroupValues>>,
    /// Groups that were given out already; the first group now has this number in `pairs`.
    emitted: u64,
    /// Of the groups from `emitted` on.
    counts: Vec<i64>,
    /// Kept for its memory.
    ids: Vec<usize>,
}

impl DistinctCounts {
    pub(super) fn new(value_type: DataType) -> Self {
        Self { value_type, pairs: None, emitted: 0, counts: Vec::new(), ids: Vec::new() }
    }

    /// Counts each of `values` in its group, unless it is there already.
    fn add(&mut self, groups: UInt64Array, values: &ArrayRef) -> Result<()> {
        let stored = stored(&self.value_type);
        let values = convert(values, &stored)?;
        let pairs = match &mut self.pairs {
            Some(pairs) => pairs,
            None => {
                let fields = [Field::new("group", DataType::UInt64, false), Field::new("value", stored, false)];
                self.pairs.insert(new_group_values(Arc::new(Schema::new(fields.to_vec())), &GroupOrdering::None)?)
            }
        };
        let known = pairs.len();
        let groups = Arc::new(groups);
        pairs.intern(&[Arc::clone(&groups) as ArrayRef, values], &mut self.ids)?;
        // New pairs are not numbered in the order of their rows.
        let mut counted = vec![false; pairs.len() - known];
        for (id, group) in self.ids.iter().zip(groups.values()) {
            if let Some(new) = id.checked_sub(known)
                && !std::mem::replace(&mut counted[new], true)
            {
                self.counts[(group - self.emitted) as usize] += 1;
            }
        }
        Ok(())
    }

    /// Takes all pairs out.
    fn drain(&mut self) -> Result<Option<(UInt64Array, ArrayRef)>> {
        // The table goes with its pairs: it would keep its size.
        let Some(mut pairs) = self.pairs.take().filter(|pairs| !pairs.is_empty()) else { return Ok(None) };
        let mut columns = pairs.emit(EmitTo::All)?.into_iter();
        let (Some(groups), Some(values)) = (columns.next(), columns.next()) else {
            return Err(exec_datafusion_err!("pairs have two columns"));
        };
        Ok(Some((groups.as_primitive::<UInt64Type>().clone(), values)))
    }

    /// Puts those of these pairs back whose groups were not given out.
    fn put_back(&mut self, groups: &UInt64Array, values: &ArrayRef) -> Result<()> {
        let kept = BooleanArray::from_unary(groups, |group| group >= self.emitted);
        if kept.true_count() == 0 {
            return Ok(());
        }
        let groups = filter(groups, &kept)?.as_primitive::<UInt64Type>().clone();
        let counts = std::mem::take(&mut self.counts);
        self.counts = vec![0; counts.len()];
        self.add(groups, &convert(&filter(values, &kept)?, &self.value_type)?)
    }

    /// The counts of the groups that are given out now.
    fn take_counts(&mut self, emit_to: EmitTo) -> Vec<i64> {
        let counts = emit_to.take_needed(&mut self.counts);
        self.emitted += counts.len() as u64;
        if self.counts.is_empty() {
            (self.emitted, self.counts) = (0, Vec::new());
        }
        counts
    }

    fn numbers(&self, groups: &[usize]) -> UInt64Array {
        groups.iter().map(|group| *group as u64 + self.emitted).collect::<Vec<_>>().into()
    }

    /// Lists with these numbers of values each.
    fn lists(&self, lengths: impl IntoIterator<Item = i64>, values: &ArrayRef) -> Result<Vec<ArrayRef>> {
        i32::try_from(values.len()).map_err(|_| exec_datafusion_err!("more than 2^31 distinct values at once"))?;
        let offsets = OffsetBuffer::from_lengths(lengths.into_iter().map(|length| length as usize));
        let field = Arc::new(Field::new_list_field(self.value_type.clone(), true));
        let values = convert(values, &self.value_type)?;
        Ok(vec![Arc::new(ListArray::try_new(field, offsets, values, None)?)])
    }
}

/// The rows whose value counts; `None` when all do.
fn counting(values: &ArrayRef, wanted: Option<&BooleanArray>) -> Result<Option<BooleanArray>> {
    let present = (values.null_count() > 0).then(|| is_not_null(values)).transpose()?;
    Ok(match (present, wanted) {
        (Some(present), Some(wanted)) => Some(and(&present, wanted)?),
        (Some(rows), None) => Some(rows),
        (None, wanted) => wanted.cloned(),
    })
}

impl GroupsAccumulator for DistinctCounts {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        all_groups: usize,
    ) -> Result<()> {
        self.counts.resize(all_groups, 0);
        let groups = self.numbers(groups);
        match counting(&values[0], wanted)? {
            None => self.add(groups, &values[0]),
            Some(rows) => {
                let groups = filter(&groups, &rows)?.as_primitive::<UInt64Type>().clone();
                self.add(groups, &filter(&values[0], &rows)?)
            }
        }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let counts = self.take_counts(emit_to);
        // To take out a few groups at a time is cheap as long as most of the pairs are still needed.
        let needed = self.counts.iter().sum::<i64>() as usize;
        if needed == 0 {
            self.pairs = None;
        } else if self.pairs.as_ref().is_some_and(|pairs| pairs.len() > 2 * needed)
            && let Some((groups, values)) = self.drain()?
        {
            self.put_back(&groups, &values)?;
        }
        Ok(Arc::new(Int64Array::from(counts)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let first = self.emitted;
        let pairs = self.drain()?;
        let counts = self.take_counts(emit_to);
        let Some((groups, values)) = pairs else {
            return self.lists(counts, &datafusion::arrow::array::new_empty_array(&stored(&self.value_type)));
        };
        // Where the next value of each group belongs.
        let mut next: Vec<u64> = Vec::with_capacity(counts.len());
        let mut total = 0;
        for count in &counts {
            next.push(total);
            total += *count as u64;
        }
        let mut order = vec![0; total as usize];
        for (pair, group) in groups.values().iter().enumerate() {
            if let Some(place) = group.checked_sub(first).and_then(|group| next.get_mut(group as usize)) {
                order[*place as usize] = pair as u64;
                *place += 1;
            }
        }
        if !self.counts.is_empty() {
            self.put_back(&groups, &values)?;
        }
        drop(groups);
        let values = take(&values, &UInt64Array::from(order), None)?;
        self.lists(counts, &values)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], all_groups: usize) -> Result<()> {
        self.counts.resize(all_groups, 0);
        let lists = values[0].as_list::<i32>();
        let offsets = lists.offsets();
        let (start, end) = (offsets[0] as usize, offsets[lists.len()] as usize);
        let mut numbers = Vec::with_capacity(end - start);
        for (row, group) in groups.iter().enumerate() {
            numbers.extend(std::iter::repeat_n(*group as u64 + self.emitted, lists.value_length(row) as usize));
        }
        self.add(numbers.into(), &lists.values().slice(start, end - start))
    }

    fn convert_to_state(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let Some(rows) = counting(&values[0], wanted)? else {
            return self.lists(std::iter::repeat_n(1, values[0].len()), &values[0]);
        };
        let lengths = rows.iter().map(|counts| i64::from(counts == Some(true)));
        self.lists(lengths, &filter(&values[0], &rows)?)
    }

    fn size(&self) -> usize {
        let pairs = self.pairs.as_ref().map_or(0, |pairs| pairs.size());
        size_of::<Self>() + pairs + self.counts.capacity() * size_of::<i64>() + self.ids.capacity() * size_of::<usize>()
    }
}
