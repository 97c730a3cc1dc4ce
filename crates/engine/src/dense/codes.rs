//! The strings of one key, numbered for a whole query.
//!
//! Each batch may come with a dictionary of its own; those of one segment share theirs. A dictionary is translated
//! once, by whoever meets it first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, StringArray, StringViewArray, UInt32Array};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::hash_utils::RandomState;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryReservation;
use parking_lot::Mutex;

/// Dictionaries whose translations are kept: partitions that share a segment are never far apart.
const KEPT: usize = 16;
/// What a string takes beside its bytes: its places in the map and in the list.
const STRING_BYTES: usize = 64;

/// The strings of one key.
#[derive(Debug)]
pub(super) struct Codes {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    ordinals: HashMap<Arc<str>, u32, RandomState>,
    /// By ordinal; NULL, which has the first, is not there.
    strings: Vec<Arc<str>>,
    translated: VecDeque<Translation>,
    bytes: usize,
    reservation: MemoryReservation,
}

/// A dictionary, and the ordinals of its values.
#[derive(Debug, Clone)]
pub(super) struct Translation {
    dictionary: ArrayRef,
    pub(super) ordinals: Arc<[u32]>,
}

impl Translation {
    /// Whether it is that of `dictionary`. Holding the dictionary keeps another from taking its place in memory.
    pub(super) fn is_of(&self, dictionary: &ArrayRef) -> bool {
        Arc::ptr_eq(&self.dictionary, dictionary)
    }

    /// Bytes beside the dictionary, which is held by the segment it came with.
    fn size(&self) -> usize {
        size_of_val(&*self.ordinals)
    }
}

impl Codes {
    pub(super) fn new(reservation: MemoryReservation) -> Self {
        let (ordinals, strings, translated) = (HashMap::default(), Vec::new(), VecDeque::new());
        Self { known: Mutex::new(Known { ordinals, strings, translated, bytes: 0, reservation }) }
    }

    /// How many ordinals there are, that of NULL included.
    pub(super) fn ordinals(&self) -> u32 {
        self.known.lock().next()
    }

    /// The ordinals of the values of `dictionary`, of which at most `most` are given out.
    ///
    /// # Errors
    /// What the pool says when it has no room for the strings. `Ok(None)`: there would be more than `most`.
    pub(super) fn translate(&self, dictionary: &ArrayRef, most: u32) -> Result<Option<Translation>> {
        let mut known = self.known.lock();
        if let Some(translation) = known.translated.iter().find(|translation| translation.is_of(dictionary)) {
            return Ok(Some(translation.clone()));
        }
        let ordinals = match dictionary.data_type() {
            DataType::Utf8 => known.add(dictionary.as_string::<i32>(), most),
            DataType::LargeUtf8 => known.add(dictionary.as_string::<i64>(), most),
            DataType::Utf8View => known.add(dictionary.as_string_view(), most),
            other => Err(internal_datafusion_err!("{other} is not a string")),
        }?;
        let Some(ordinals) = ordinals else { return Ok(None) };
        let translation = Translation { dictionary: Arc::clone(dictionary), ordinals: ordinals.into() };
        known.bytes += translation.size();
        known.translated.push_back(translation.clone());
        if known.translated.len() > KEPT {
            let oldest = known.translated.pop_front();
            known.bytes -= oldest.map_or(0, |oldest| oldest.size());
        }
        let bytes = known.bytes;
        known.reservation.try_resize(bytes)?;
        Ok(Some(translation))
    }

    /// The strings of these ordinals.
    pub(super) fn values(&self, ordinals: &[u32], data_type: &DataType) -> Result<ArrayRef> {
        let known = self.known.lock();
        let strings = match data_type {
            DataType::Utf8 => Arc::new(StringArray::from_iter_values(&known.strings)) as ArrayRef,
            DataType::LargeUtf8 => Arc::new(LargeStringArray::from_iter_values(&known.strings)),
            _ => Arc::new(StringViewArray::from_iter_values(&known.strings)),
        };
        drop(known);
        let indices: UInt32Array = ordinals.iter().map(|ordinal| ordinal.checked_sub(1)).collect();
        let values = take(&strings, &indices, None)?;
        if values.data_type() == data_type { Ok(values) } else { Ok(cast(&values, data_type)?) }
    }
}

impl Known {
    fn next(&self) -> u32 {
        // No more are given out than `most`, a `u32`.
        self.strings.len() as u32 + 1
    }

    fn add<'a>(&mut self, strings: impl IntoIterator<Item = Option<&'a str>>, most: u32) -> Result<Option<Vec<u32>>> {
        let strings = strings.into_iter();
        let mut ordinals = Vec::with_capacity(strings.size_hint().0);
        for string in strings {
            let ordinal = match string {
                None => 0,
                Some(string) => match self.ordinals.get(string) {
                    Some(ordinal) => *ordinal,
                    None => {
                        let ordinal = self.next();
                        if ordinal >= most {
                            return Ok(None);
                        }
                        let string: Arc<str> = string.into();
                        self.bytes += string.len() + STRING_BYTES;
                        self.ordinals.insert(Arc::clone(&string), ordinal);
                        self.strings.push(string);
                        ordinal
                    }
                },
            };
            ordinals.push(ordinal);
        }
        Ok(Some(ordinals))
    }
}
