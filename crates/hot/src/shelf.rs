//! What is kept, what is worth keeping, and who goes first.
//!
//! Reading a column again costs time in proportion to its bytes, and so does the room it takes: what a byte of the cache is
//! worth is how often its column is asked for. So the least asked for goes first (and of those the one asked for longest
//! ago), and a newcomer takes the room of those that were asked for less than itself, never of equals: a scan over more than
//! fits, however often it is repeated, then keeps a part of itself in memory instead of chasing itself through it.
//! What was asked for is remembered for a while when it is not kept, so that the second time counts. All counts are halved
//! again and again, so that what was asked for often, and is no more, goes. Columns of a file that was replaced are asked for
//! by those queries alone that began before: they count as never asked for at once.
//!
//! Loading a column takes longer than reading it once from its file. So each slot also holds what reading the column from
//! the file has cost since it was last in memory, in parts of a whole reading: when that is as much as a whole one, loading it
//! then costs at most twice of what would have been best, whatever is asked for later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use datafusion::common::HashMap;

use crate::column::Column;
use crate::key::{ColumnKey, FileKey};

/// Counts end here: more would take longer to forget. One below the largest number, which is so above all of them.
const USES_MAX: u8 = u8::MAX - 1;
/// Asks per slot, on average, after which all counts are halved.
const ASKS_PER_SLOT: u64 = 8;
/// Slots below which asks are counted as if there were as many: a small cache forgets no faster.
const SLOTS_MIN: usize = 1024;
/// Parts of a column, the least that is counted.
pub(crate) const WHOLE: u8 = 128;
/// Columns that are remembered without being kept, at about 200 bytes each. At the bound the older half is forgotten.
const REMEMBERED_MAX: usize = 1 << 16;

/// Bytes by uses.
type Bytes = [u64; USES_MAX as usize + 1];
const NOTHING: Bytes = [0; USES_MAX as usize + 1];

/// Columns in memory, and how often they and others were asked for.
#[derive(Debug)]
pub(crate) struct Shelf {
    slots: HashMap<ColumnKey, Slot>,
    /// Asks so far: the time by which slots are old.
    asks: u64,
    /// When counts were last halved.
    aged: u64,
    /// Slots without a column.
    remembered: usize,
    /// Bytes that are kept, by uses.
    bytes: Bytes,
}

#[derive(Debug)]
struct Slot {
    uses: u8,
    /// Parts of [`WHOLE`] that were read from the file while it was not kept.
    paid: u8,
    last: u64,
    kept: Option<Kept>,
}

/// A column that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) column: Arc<Column>,
    /// The table that it was loaded for.
    pub(crate) table: Arc<str>,
    pub(crate) bytes: u64,
}

impl Kept {
    /// Whether letting go of it frees anything now.
    fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.column) > 1
    }
}

impl Default for Shelf {
    fn default() -> Self {
        Self { slots: HashMap::new(), asks: 0, aged: 0, remembered: 0, bytes: NOTHING }
    }
}

impl Shelf {
    /// The column, if it is kept. Asking `times` times makes it worth more.
    pub(crate) fn ask(&mut self, key: &ColumnKey, times: u8) -> Option<Arc<Column>> {
        self.asks += 1;
        if self.asks - self.aged > ASKS_PER_SLOT * self.slots.len().max(SLOTS_MIN) as u64 {
            self.age();
        }
        let Some(slot) = self.slots.get_mut(key) else {
            self.slots.insert(key.clone(), Slot { uses: times.min(USES_MAX), paid: 0, last: self.asks, kept: None });
            self.remembered += 1;
            if self.remembered > REMEMBERED_MAX {
                self.forget();
            }
            return None;
        };
        slot.last = self.asks;
        let before = slot.uses;
        slot.uses = before.saturating_add(times).min(USES_MAX);
        let kept = slot.kept.as_ref()?;
        self.bytes[usize::from(before)] -= kept.bytes;
        self.bytes[usize::from(slot.uses)] += kept.bytes;
        Some(Arc::clone(&kept.column))
    }

    /// The column, if it is kept. Nothing is counted.
    pub(crate) fn peek(&self, key: &ColumnKey) -> Option<&Arc<Column>> {
        Some(&self.slots.get(key)?.kept.as_ref()?.column)
    }

    /// How often `key` was asked for lately.
    pub(crate) fn uses(&self, key: &ColumnKey) -> u8 {
        self.slots.get(key).map_or(0, |slot| slot.uses)
    }

    /// Counts `parts` of [`WHOLE`] as read from the file, if the column is remembered.
    pub(crate) fn pay(&mut self, key: &ColumnKey, parts: u8) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.paid = slot.paid.saturating_add(parts);
        }
    }

    /// Whether as much of a column was read from the file as a whole reading.
    pub(crate) fn is_paid(&self, key: &ColumnKey) -> bool {
        self.slots.get(key).is_some_and(|slot| slot.paid >= WHOLE)
    }

    /// Keeps a column.
    pub(crate) fn keep(&mut self, key: ColumnKey, kept: Kept) {
        let last = self.asks;
        let slot = self.slots.entry(key).or_insert_with(|| {
            self.remembered += 1;
            Slot { uses: 1, paid: 0, last, kept: None }
        });
        self.bytes[usize::from(slot.uses)] += kept.bytes;
        match slot.kept.replace(kept) {
            Some(old) => self.bytes[usize::from(slot.uses)] -= old.bytes,
            None => self.remembered -= 1,
        }
    }

    /// Lets go of at least `bytes` that were asked for less than `below` times, and that nobody reads now. `None`, and
    /// nothing is gone, when there are not as many.
    pub(crate) fn make_room(&mut self, bytes: u64, below: u8) -> Option<Vec<Kept>> {
        if self.bytes_below(below) < bytes {
            return None;
        }
        let (keys, found) = self.least(bytes, below);
        (found >= bytes).then(|| self.take(&keys))
    }

    /// Lets go of `bytes`, or of as many as nobody reads now. They come back when they were read from their files as much as
    /// if they had never been here.
    pub(crate) fn let_go(&mut self, bytes: u64) -> Vec<Kept> {
        let (keys, _) = self.least(bytes, u8::MAX);
        self.take_anew(&keys)
    }

    /// Lets go of all columns for which `gone` says so, likewise.
    pub(crate) fn remove(&mut self, gone: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        let which = self.slots.iter().filter(|(_, slot)| slot.kept.as_ref().is_some_and(&gone));
        let keys: Vec<_> = which.map(|(key, _)| key.clone()).collect();
        self.take_anew(&keys)
    }

    /// Forgets that columns of files for which `is_gone` says so were asked for: what is kept of them goes before all others.
    pub(crate) fn retire(&mut self, is_gone: impl Fn(&FileKey) -> bool) {
        let Self { slots, bytes, .. } = self;
        slots.retain(|key, slot| {
            if !is_gone(&key.segment.file) {
                return true;
            }
            let Some(kept) = &slot.kept else { return false };
            bytes[usize::from(slot.uses)] -= kept.bytes;
            bytes[0] += kept.bytes;
            (slot.uses, slot.last) = (0, 0);
            true
        });
        self.retain_remembered(|_| true);
    }

    /// Lets go of all columns, and forgets what was asked for.
    pub(crate) fn clear(&mut self) -> Vec<Kept> {
        let slots = std::mem::take(self).slots;
        slots.into_values().filter_map(|slot| slot.kept).collect()
    }

    /// Bytes of columns asked for less than `below` times, those included that are read now.
    pub(crate) fn bytes_below(&self, below: u8) -> u64 {
        self.bytes[..usize::from(below)].iter().sum()
    }

    /// All that is kept.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.slots.values().filter_map(|slot| slot.kept.as_ref())
    }

    /// The least worth keeping that make up `bytes`, and how many bytes they are. Looks at all: whoever asks goes on to read
    /// a row group, which takes far longer.
    fn least(&self, bytes: u64, below: u8) -> (Vec<ColumnKey>, u64) {
        let which = self.slots.iter().filter_map(|(key, slot)| Some((key, slot, slot.kept.as_ref()?)));
        let which: Vec<_> = which.filter(|(_, slot, kept)| slot.uses < below && !kept.is_pinned()).collect();
        // No two were asked for last at the same time, so their place decides between columns of files that are gone alone.
        let order = which.iter().enumerate().map(|(at, (_, slot, _))| Reverse((slot.uses, slot.last, at)));
        let mut order: BinaryHeap<_> = order.collect();
        let (mut keys, mut found) = (Vec::new(), 0);
        while found < bytes
            && let Some(Reverse((_, _, at))) = order.pop()
        {
            let (key, _, kept) = which[at];
            keys.push(key.clone());
            found += kept.bytes;
        }
        (keys, found)
    }

    fn take_anew(&mut self, keys: &[ColumnKey]) -> Vec<Kept> {
        for key in keys {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.paid = 0;
            }
        }
        self.take(keys)
    }

    fn take(&mut self, keys: &[ColumnKey]) -> Vec<Kept> {
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            let Some(kept) = slot.kept.take() else { continue };
            self.bytes[usize::from(slot.uses)] -= kept.bytes;
            self.remembered += 1;
            taken.push(kept);
        }
        if self.remembered > REMEMBERED_MAX {
            self.forget();
        }
        taken
    }

    fn age(&mut self) {
        self.aged = self.asks;
        self.bytes = NOTHING;
        for slot in self.slots.values_mut() {
            slot.uses /= 2;
            // What is kept needs it when others have taken its room.
            if slot.kept.is_none() {
                slot.paid /= 2;
            }
            self.bytes[usize::from(slot.uses)] += slot.kept.as_ref().map_or(0, |kept| kept.bytes);
        }
        self.retain_remembered(|slot| slot.uses > 0);
    }

    fn forget(&mut self) {
        let mut ages: Vec<u64> = self.slots.values().filter(|slot| slot.kept.is_none()).map(|slot| slot.last).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.retain_remembered(|slot| slot.last >= median);
    }

    fn retain_remembered(&mut self, stays: impl Fn(&Slot) -> bool) {
        self.slots.retain(|_, slot| slot.kept.is_some() || stays(slot));
        self.remembered = self.slots.values().filter(|slot| slot.kept.is_none()).count();
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::Int64Array;
    use datafusion::arrow::datatypes::DataType;

    use super::*;
    use crate::key::{FileKey, SegmentId};

    fn key(column: u32) -> ColumnKey {
        let segment = SegmentId { file: FileKey::new("f"), row_group: 0 };
        ColumnKey { segment, column, data_type: DataType::Int64 }
    }

    fn keep(shelf: &mut Shelf, column: u32, bytes: u64) {
        let values = Arc::new(Int64Array::from(vec![i64::from(column)]));
        let kept = Kept { column: Arc::new(Column::new(values).expect("a column")), table: "t".into(), bytes };
        shelf.keep(key(column), kept);
    }

    #[test]
    fn the_least_asked_for_goes_first_and_never_an_equal() {
        let mut shelf = Shelf::default();
        for column in 0..4 {
            for _ in 0..=column {
                assert!(shelf.ask(&key(column), 1).is_none());
            }
            keep(&mut shelf, column, 10);
        }
        assert_eq!((shelf.bytes_below(1), shelf.bytes_below(2), shelf.bytes_below(u8::MAX)), (0, 10, 40));
        assert!(shelf.make_room(11, 2).is_none(), "only one was asked for less than twice");
        assert_eq!(shelf.make_room(11, 3).expect("two").len(), 2);
        assert!(shelf.peek(&key(0)).is_none() && shelf.peek(&key(1)).is_none());
        assert_eq!(shelf.uses(&key(1)), 2, "it is remembered");
        let reader = shelf.ask(&key(2), 1).expect("kept");
        assert_eq!(shelf.let_go(100).len(), 1, "the other is being read");
        drop(reader);
        assert_eq!(shelf.let_go(1).len(), 1);
        assert_eq!(shelf.bytes, NOTHING);
    }

    #[test]
    fn what_is_no_longer_asked_for_is_worth_less_and_then_forgotten() {
        let mut shelf = Shelf::default();
        shelf.ask(&key(1), 1);
        for _ in 0..300 {
            shelf.ask(&key(0), 1);
        }
        keep(&mut shelf, 0, 10);
        assert_eq!(shelf.uses(&key(0)), USES_MAX);
        for _ in 0..4 * ASKS_PER_SLOT * (SLOTS_MIN as u64 + 1) {
            shelf.ask(&key(2), 1);
        }
        assert_eq!((shelf.uses(&key(0)), shelf.uses(&key(1))), (USES_MAX / 16, 0));
        assert_eq!((shelf.bytes[15], shelf.remembered, shelf.slots.len()), (10, 1, 2));
    }

    #[test]
    fn what_was_paid_for_stays_so_until_it_is_given_back() {
        let mut shelf = Shelf::default();
        shelf.pay(&key(0), WHOLE);
        assert!(!shelf.is_paid(&key(0)), "nobody asked for it");
        shelf.ask(&key(0), 1);
        shelf.pay(&key(0), WHOLE - 1);
        assert!(!shelf.is_paid(&key(0)));
        shelf.pay(&key(0), u8::MAX);
        assert!(shelf.is_paid(&key(0)));
        keep(&mut shelf, 0, 10);
        assert_eq!(shelf.make_room(10, 2).expect("it was asked for once").len(), 1);
        assert!(shelf.is_paid(&key(0)), "others needed its room: it comes back at once");
        keep(&mut shelf, 0, 10);
        assert_eq!(shelf.let_go(10).len(), 1);
        assert!(!shelf.is_paid(&key(0)), "queries needed it");
        keep(&mut shelf, 0, 10);
        assert_eq!((shelf.clear().len(), shelf.slots.len(), shelf.bytes), (1, 0, NOTHING));
    }

    #[test]
    fn what_is_kept_of_a_file_that_is_gone_goes_before_all_others() {
        let mut shelf = Shelf::default();
        for column in [0, 0, 0, 1, 2] {
            shelf.ask(&key(column), 1);
        }
        keep(&mut shelf, 0, 10);
        shelf.retire(|file| *file == FileKey::new("other"));
        assert_eq!((shelf.uses(&key(0)), shelf.remembered), (3, 2));
        shelf.retire(|file| *file == FileKey::new("f"));
        assert_eq!((shelf.bytes[0], shelf.bytes_below(u8::MAX), shelf.remembered, shelf.slots.len()), (10, 10, 0, 1));
        assert!(shelf.ask(&key(0), 1).is_some(), "who reads the old file still finds it");
        assert_eq!(shelf.make_room(10, 2).expect("it was asked for once").len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut shelf = Shelf::default();
        keep(&mut shelf, u32::MAX, 1);
        for column in 0..2 * REMEMBERED_MAX as u32 {
            shelf.ask(&key(column), 1);
        }
        assert!(shelf.slots.len() <= REMEMBERED_MAX + 1);
        assert!(shelf.peek(&key(u32::MAX)).is_some());
        assert_eq!(shelf.uses(&key(2 * REMEMBERED_MAX as u32 - 1)), 1);
    }
}
