//! The groups of one partition: numbered in the order in which they come, found by their slot.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use datafusion::arrow::compute::take;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::logical_expr::{ColumnarValue, EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Literal;

use super::codes::{Codes, Translation};
use super::keys::{Domain, Radix, add_coded, add_range, range_values};

/// Ordinals that a key of strings has room for at first; it is doubled as they come.
const CODES_MIN: u32 = 16;

/// A key of the groups.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) expr: Arc<dyn PhysicalExpr>,
    /// Of what the aggregate gives; a coded key is a dictionary in its input.
    pub(super) data_type: DataType,
    pub(super) domain: Domain,
}

/// How rows are grouped, and what is made of them.
#[derive(Debug, Clone)]
pub(super) struct Grouping {
    pub(super) keys: Vec<Key>,
    pub(super) functions: Arc<[Arc<AggregateFunctionExpr>]>,
    pub(super) filters: Arc<[Option<Arc<dyn PhysicalExpr>>]>,
    /// The most slots of a table.
    pub(super) slots_max: u32,
}

/// The slots at the start, as far as they are known; `None` if they are more than `slots_max`.
pub(super) fn first_radix(keys: &[Key], slots_max: u32) -> Option<Radix> {
    let ordinals = keys.iter().map(|key| match key.domain {
        Domain::Range { count, .. } => count + 1,
        Domain::Coded => CODES_MIN,
    });
    Radix::new(ordinals, slots_max)
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    All,
    /// It was added, and there is no room for another.
    Last,
    /// Nothing of it: its keys are not what they were thought to be, or there is no room for them.
    Nothing,
}

/// The groups seen so far.
pub(super) struct Groups {
    grouping: Arc<Grouping>,
    /// Of each coded key.
    codes: Arc<[Option<Codes>]>,
    translations: Vec<Option<Translation>>,
    radix: Radix,
    /// By slot: the number of its group, from 1 on. Only every `every`th slot is here.
    numbers: Vec<u32>,
    every: u32,
    /// By group.
    slots: Vec<u32>,
    functions: Vec<Function>,
    reservation: MemoryReservation,
    /// Of the rows of a batch; kept for their memory.
    batch_slots: Vec<u32>,
    batch_groups: Vec<usize>,
}

/// Groups as they are handed on: where they belong, and their states.
pub(super) struct Piece {
    pub(super) slots: Vec<u32>,
    pub(super) radix: Radix,
    /// The state columns of all functions.
    pub(super) states: Vec<ArrayRef>,
    pub(super) reservation: MemoryReservation,
}

impl Groups {
    /// # Errors
    /// A function without an accumulator for groups.
    pub(super) fn new(
        grouping: Arc<Grouping>,
        codes: Arc<[Option<Codes>]>,
        radix: Radix,
        reservation: MemoryReservation,
    ) -> Result<Self> {
        let functions = grouping.functions.iter().zip(grouping.filters.iter());
        let functions = functions.map(|(function, filter)| Function::new(function, filter.clone()));
        Ok(Self {
            functions: functions.collect::<Result<_>>()?,
            translations: vec![None; grouping.keys.len()],
            grouping,
            codes,
            radix,
            numbers: Vec::new(),
            every: 1,
            slots: Vec::new(),
            reservation,
            batch_slots: Vec::new(),
            batch_groups: Vec::new(),
        })
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds rows.
    ///
    /// # Errors
    /// What an expression or an accumulator says; never that memory is short.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> Result<Added> {
        let rows = batch.num_rows();
        let keys = self.grouping.keys.iter().map(|key| key.expr.evaluate(batch)?.into_array(rows));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        if !self.translate(&keys) || !self.make_room() || !self.place(&keys, rows)? {
            return Ok(Added::Nothing);
        }
        let Self { numbers, slots, batch_slots, batch_groups, .. } = self;
        number(numbers, slots, batch_slots.iter().map(|slot| (*slot, *slot)), batch_groups);
        for function in &mut self.functions {
            function.update(batch, &self.batch_groups, self.slots.len())?;
        }
        Ok(if self.reserve(self.size()) { Added::All } else { Added::Last })
    }

    /// Makes sure that the strings of all coded keys have ordinals. False if there are too many, or no room.
    fn translate(&mut self, keys: &[ArrayRef]) -> bool {
        for ((key, codes), last) in keys.iter().zip(self.codes.iter()).zip(&mut self.translations) {
            let (Some(codes), Some(dictionary)) = (codes, key.as_any_dictionary_opt()) else { continue };
            if last.as_ref().is_some_and(|last| last.is_of(dictionary.values())) {
                continue;
            }
            match codes.translate(dictionary.values(), self.grouping.slots_max) {
                Ok(Some(translation)) => *last = Some(translation),
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    /// Makes sure that there are slots for all ordinals. False if that are too many, or there is no room.
    fn make_room(&mut self) -> bool {
        let needed = |key: usize| self.codes[key].as_ref().map_or(0, Codes::ordinals);
        let grown = (0..self.codes.len()).any(|key| needed(key) > self.radix.ordinals(key));
        if !grown && !self.numbers.is_empty() {
            return true;
        }
        let ordinals = (0..self.codes.len()).map(|key| match (needed(key), self.radix.ordinals(key)) {
            (needed, ordinals) if needed > ordinals => needed.next_power_of_two(),
            (_, ordinals) => ordinals,
        });
        let Some(radix) = Radix::new(ordinals, self.grouping.slots_max) else { return false };
        let table = radix.slots() as usize * size_of::<u32>();
        // The old table and the new one.
        if !self.reserve(self.size() + table) {
            return false;
        }
        self.slots = self.radix.convert(&self.slots, &radix);
        self.numbers = vec![0; radix.slots() as usize];
        for (number, slot) in (1..).zip(&self.slots) {
            self.numbers[*slot as usize] = number;
        }
        self.radix = radix;
        true
    }

    /// Puts the slots of the rows into `batch_slots`. False if a key is out of its range.
    fn place(&mut self, keys: &[ArrayRef], rows: usize) -> Result<bool> {
        self.batch_slots.clear();
        self.batch_slots.resize(rows, 0);
        let slots = self.batch_slots.as_mut_slice();
        for (index, (values, key)) in keys.iter().zip(&self.grouping.keys).enumerate() {
            let stride = self.radix.stride(index);
            match (key.domain, &self.translations[index]) {
                (Domain::Range { min, count }, _) => {
                    if !add_range(values, min, count, stride, slots)? {
                        return Ok(false);
                    }
                }
                (Domain::Coded, Some(translation)) => add_coded(values, &translation.ordinals, stride, slots)?,
                // It is no dictionary.
                (Domain::Coded, None) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes those groups of `pieces` whose slots leave the rest `share` when divided by `every`.
    ///
    /// # Errors
    /// What an accumulator says.
    pub(super) async fn merge(&mut self, pieces: &[Piece], share: u32, every: u32) -> Result<()> {
        /// Rows that are merged before other tasks have a turn.
        const CHUNK: usize = 32 << 10;
        self.every = every;
        self.numbers = vec![0; self.radix.slots() as usize / every as usize + 1];
        for piece in pieces {
            for start in (0..piece.slots.len()).step_by(CHUNK) {
                let length = CHUNK.min(piece.slots.len() - start);
                self.merge_some(piece, start, length, share)?;
                tokio::task::yield_now().await;
            }
        }
        // It was reserved as long as it was not known.
        self.reservation.resize(self.size());
        Ok(())
    }

    fn merge_some(&mut self, piece: &Piece, start: usize, length: usize, share: u32) -> Result<()> {
        let slots = piece.radix.convert(&piece.slots[start..start + length], &self.radix);
        let every = self.every;
        let mine = (0_u32..).zip(&slots).filter(|(_, slot)| *slot % every == share);
        let rows: Vec<u32> = mine.map(|(row, _)| row).collect();
        let Self { numbers, slots: known, batch_groups, .. } = self;
        let places = rows.iter().map(|row| slots[*row as usize]).map(|slot| (slot, slot / every));
        number(numbers, known, places, batch_groups);
        let rows = UInt32Array::from(rows);
        let mut states = piece.states.iter().map(|state| {
            let state = state.slice(start, length);
            Ok(if rows.len() == length { state } else { take(&state, &rows, None)? })
        });
        for function in &mut self.functions {
            let states = states.by_ref().take(function.states).collect::<Result<Vec<_>>>()?;
            function.accumulator.merge_batch(&states, &self.batch_groups, self.slots.len())?;
        }
        Ok(())
    }

    /// Gives the groups away in the form in which they can be merged.
    ///
    /// # Errors
    /// What an accumulator says.
    pub(super) async fn into_piece(mut self) -> Result<Piece> {
        self.numbers = Vec::new();
        let mut states = Vec::new();
        for function in &mut self.functions {
            states.append(&mut function.accumulator.state(EmitTo::All)?);
            // That takes milliseconds for each hundred thousand groups.
            tokio::task::yield_now().await;
        }
        let Self { slots, radix, reservation, .. } = self;
        let bytes = states.iter().map(|state| state.get_array_memory_size()).sum::<usize>();
        reservation.resize(bytes + slots.capacity() * size_of::<u32>());
        Ok(Piece { slots, radix, states, reservation })
    }

    /// The keys of all groups, and what the functions make of them.
    ///
    /// # Errors
    /// What an accumulator says.
    pub(super) async fn into_columns(mut self) -> Result<(Vec<ArrayRef>, MemoryReservation)> {
        self.numbers = Vec::new();
        let mut columns = self.grouping.key_columns(&self.codes, &self.radix, &self.slots)?;
        for function in &mut self.functions {
            columns.push(function.accumulator.evaluate(EmitTo::All)?);
            tokio::task::yield_now().await;
        }
        let bytes = columns.iter().map(|column| column.get_array_memory_size()).sum::<usize>();
        self.reservation.resize(bytes);
        Ok((columns, self.reservation))
    }

    /// Reserves `bytes`, and a quarter more: that is where DataFusion's aggregates begin if they have to take over.
    fn reserve(&self, bytes: usize) -> bool {
        self.reservation.try_resize(bytes + bytes / 4).is_ok()
    }

    fn size(&self) -> usize {
        let functions = self.functions.iter().map(|function| function.accumulator.size()).sum::<usize>();
        let slots = self.numbers.capacity() + self.slots.capacity() + self.batch_slots.capacity();
        functions + slots * size_of::<u32>() + self.batch_groups.capacity() * size_of::<usize>()
    }
}

impl Grouping {
    /// The keys of the groups in these slots.
    ///
    /// # Errors
    /// A string that does not fit the type of its key.
    pub(super) fn key_columns(&self, codes: &[Option<Codes>], radix: &Radix, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let columns = self.keys.iter().zip(codes).enumerate().map(|(index, (key, codes))| {
            let ordinals = radix.digit(index, slots);
            match (key.domain, codes) {
                (Domain::Range { min, .. }, _) => range_values(&ordinals, min, &key.data_type),
                (Domain::Coded, Some(codes)) => codes.values(&ordinals, &key.data_type),
                (Domain::Coded, None) => Err(internal_datafusion_err!("a coded key has codes")),
            }
        });
        columns.collect()
    }
}

/// Looks up the groups of slots, each given with its place in `numbers`, and numbers those that are new.
fn number(
    numbers: &mut [u32],
    slots: &mut Vec<u32>,
    places: impl ExactSizeIterator<Item = (u32, u32)>,
    groups: &mut Vec<usize>,
) {
    groups.clear();
    groups.extend(places.map(|(slot, place)| {
        let number = &mut numbers[place as usize];
        if *number == 0 {
            slots.push(slot);
            // There are no more groups than slots.
            *number = slots.len() as u32;
        }
        *number as usize - 1
    }));
}

/// An aggregate function, with the states of all groups.
struct Function {
    accumulator: Box<dyn GroupsAccumulator>,
    arguments: Vec<Argument>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// How many columns its state has.
    states: usize,
}

struct Argument {
    expr: Arc<dyn PhysicalExpr>,
    /// Of a literal, such as that of `count(*)`: as many as the longest batch so far had rows.
    repeated: Option<ArrayRef>,
}

impl Function {
    fn new(function: &AggregateFunctionExpr, filter: Option<Arc<dyn PhysicalExpr>>) -> Result<Self> {
        let arguments = function.expressions().into_iter().map(|expr| Argument { expr, repeated: None });
        Ok(Self {
            accumulator: function.create_groups_accumulator()?,
            arguments: arguments.collect(),
            filter,
            states: function.state_fields()?.len(),
        })
    }

    fn update(&mut self, batch: &RecordBatch, groups: &[usize], total: usize) -> Result<()> {
        let values = self.arguments.iter_mut().map(|argument| argument.evaluate(batch));
        let values = values.collect::<Result<Vec<_>>>()?;
        let filter = self.filter.as_ref().map(|filter| filter.evaluate(batch)?.into_array(batch.num_rows()));
        let filter = filter.transpose()?;
        let filter = filter.as_ref().map(|filter| filter.as_boolean());
        self.accumulator.update_batch(&values, groups, filter, total)
    }
}

impl Argument {
    fn evaluate(&mut self, batch: &RecordBatch) -> Result<ArrayRef> {
        let rows = batch.num_rows();
        if let Some(repeated) = self.repeated.as_ref().filter(|repeated| repeated.len() >= rows) {
            return Ok(repeated.slice(0, rows));
        }
        match self.expr.evaluate(batch)? {
            ColumnarValue::Scalar(value) => {
                let values = value.to_array_of_size(rows)?;
                if self.expr.is::<Literal>() {
                    self.repeated = Some(Arc::clone(&values));
                }
                Ok(values)
            }
            ColumnarValue::Array(values) => Ok(values),
        }
    }
}
