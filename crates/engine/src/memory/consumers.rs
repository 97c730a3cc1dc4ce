//! The operators of one query, and what each of them has.
//!
//! DataFusion says of them what they are called and whether they can spill. What else matters to who gets memory and who is
//! told to spill is known by their names.

use std::collections::HashMap;

use bytesize::ByteSize;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};

use super::overhead::kind;

/// How much more an operator may have while it spills, as a part of what it had when it was told to. A sort makes its
/// batches anew to write them, and fails when these may not be a little larger.
const SPILLING: u64 = 8;
/// How many of the largest operators a refusal names.
const NAMED: usize = 3;

/// All operators of a query that may ask for memory.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    used: u64,
    spillable: u64,
    by_id: HashMap<usize, Consumer>,
}

#[derive(Debug)]
struct Consumer {
    name: String,
    usage: Usage,
    /// Of a sort: the consumer that has memory set aside for its merge while it gathers rows, and not a byte when it begins
    /// to hand them on.
    merge: Option<usize>,
}

/// What an operator has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) can_spill: bool,
    /// Bytes it says it has.
    pub(super) said: u64,
    /// Bytes it is charged.
    pub(super) charged: u64,
    /// Real bytes per said byte, as a fraction.
    overhead: (u64, u64),
    /// It was refused memory before, and is of a kind that cannot spill what it reads back.
    has_spilled: bool,
    /// What it was charged when it was refused more, until it has spilled that.
    spills: Option<u64>,
}

impl Usage {
    /// With `said` bytes.
    pub(super) fn with(self, said: u64) -> Self {
        let (numerator, denominator) = self.overhead;
        Self { said, charged: said.saturating_mul(numerator) / denominator.max(1), ..self }
    }

    /// Whether it gives way to others when it goes on to `after`, by spilling. With nothing to spill it would fail, and
    /// so would one that reads back what it has spilled, and one that was told to a moment ago.
    pub(super) fn gives_way(self, after: Self) -> bool {
        let spilled = |told_at: u64| self.charged <= told_at / 2;
        let spilling = |told_at: u64| after.charged <= told_at.saturating_add(told_at / SPILLING);
        let told = self.spills.is_some_and(|told_at| spilled(told_at) || spilling(told_at));
        self.can_spill && self.said > 0 && !self.has_spilled && !told
    }

    /// It was given more: what it was told to spill it has spilled, if little is left.
    pub(super) fn granted(self, before: Self) -> Self {
        Self { spills: self.spills.filter(|told_at| before.charged > told_at / 2), ..self }
    }

    /// The operator of this name was refused more, and spills if it has anything.
    pub(super) fn refused(self, consumer: &str) -> Self {
        let has_spilled = self.has_spilled || reads_back_alone(consumer);
        // Refused again before it has spilled, it may not have an eighth of that as well.
        let spills = self.spills.or((self.said > 0).then_some(self.charged));
        Self { has_spilled, spills, ..self }
    }
}

impl Consumers {
    /// Adds one that holds nothing yet. `overhead` is what it holds of each byte it says it does, as a fraction.
    pub(super) fn register(&mut self, consumer: &MemoryConsumer, overhead: (u64, u64)) {
        let (name, id) = (consumer.name(), consumer.id());
        // An exchange holds little, and what it spills it reads back one batch at a time: it goes last.
        let can_spill = consumer.can_spill() && kind(name) != "RepartitionExec";
        let usage = Usage { can_spill, said: 0, charged: 0, overhead, has_spilled: false, spills: None };
        if let Some(sort) = self.sort_of(name, id) {
            sort.merge = Some(id);
        }
        self.by_id.insert(id, Consumer { name: name.to_owned(), usage, merge: None });
    }

    /// Forgets one, which has given back all it had.
    pub(super) fn unregister(&mut self, id: usize) {
        self.by_id.remove(&id);
    }

    /// Bytes that all of them have.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Of these, what can be spilled.
    pub(super) fn spillable(&self) -> u64 {
        self.spillable
    }

    /// What one has.
    pub(super) fn usage(&self, id: usize) -> Option<Usage> {
        self.by_id.get(&id).map(|consumer| consumer.usage)
    }

    /// What those have that can spill.
    pub(super) fn spillers(&self) -> impl Iterator<Item = Usage> {
        self.by_id.values().map(|consumer| consumer.usage).filter(|usage| usage.can_spill)
    }

    /// From now on `id` has `usage`.
    pub(super) fn put(&mut self, id: usize, usage: Usage) {
        let Some(consumer) = self.by_id.get_mut(&id) else { return };
        let before = std::mem::replace(&mut consumer.usage, usage).charged;
        self.used = self.used - before + usage.charged;
        if usage.can_spill {
            self.spillable = self.spillable - before + usage.charged;
        }
    }

    /// Whether `id` is a sort that has a merge of its own.
    pub(super) fn is_sort(&self, id: usize) -> bool {
        self.by_id.get(&id).is_some_and(|consumer| consumer.merge.is_some())
    }

    /// Whether the consumer `id`, whose `reservation` asks for more, makes or merges sorted runs: then it has nothing to
    /// spill, and fails when it is refused. Each run has a part of what the sort has.
    pub(super) fn hands_on(&self, id: usize, reservation: &MemoryReservation) -> bool {
        let Some(Consumer { merge: Some(merge), usage, .. }) = self.by_id.get(&id) else { return false };
        (reservation.size() as u64) < usage.said || self.usage(*merge).is_none_or(|merge| merge.said == 0)
    }

    /// Those that have most, and how much, for people to read.
    pub(super) fn largest(&self) -> String {
        let mut largest: Vec<_> = self.by_id.values().filter(|one| one.usage.charged > 0).collect();
        largest.sort_unstable_by_key(|one| std::cmp::Reverse(one.usage.charged));
        let named = largest.iter().take(NAMED).map(|one| format!("{} {}", one.name, ByteSize(one.usage.charged)));
        named.collect::<Vec<_>>().join(", ")
    }

    /// The sort for whose merge a consumer of this name and id is: it registered just before.
    fn sort_of(&mut self, merge: &str, id: usize) -> Option<&mut Consumer> {
        let partition = merge.strip_prefix("ExternalSorterMerge")?;
        let is_its = |name: &str| name.strip_prefix("ExternalSorter").is_some_and(|rest| rest == partition);
        let before = self.by_id.iter_mut().filter(|(sort, _)| **sort < id);
        let free = before.filter(|(_, sort)| sort.merge.is_none() && is_its(&sort.name));
        free.max_by_key(|(sort, _)| **sort).map(|(_, sort)| sort)
    }
}

/// Whether the operator of this name goes on under the same name when it reads back what it has spilled, and
/// cannot spill that again.
fn reads_back_alone(consumer: &str) -> bool {
    consumer.contains("HashAggregateStream[") || consumer.starts_with("OrderedFinalAggregateStream[")
}

/// Whether the operator of this name has something else to do when it is refused memory, whatever it has: it hands on its
/// groups, or writes to disk what has come last.
pub(super) fn goes_on_without(consumer: &str) -> bool {
    let kinds = ["RepartitionExec", "PartialHashAggregateStream", "PartialReduceHashAggregateStream", "SMJStream"];
    kinds.contains(&kind(consumer))
}
