//! What was made for clients and has not gone to them yet.
//!
//! While a query runs, what it was granted has room for what waits for its client. What waits when it is over would be
//! nobody's, for as long as the client takes its time. So it is counted here until it has gone, in the budget that all
//! queries share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::memory::Memory;

/// What all queries that are over have left.
#[derive(Debug)]
pub(crate) struct Unsent {
    memory: Memory,
    results: AtomicUsize,
}

impl Unsent {
    /// It is counted in `memory`.
    pub(crate) fn new(memory: Memory) -> Arc<Self> {
        Arc::new(Self { memory, results: AtomicUsize::new(0) })
    }

    /// How many results wait for their clients although their queries are over.
    pub(crate) fn results(&self) -> usize {
        self.results.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64, is_first: bool) {
        self.results.fetch_add(usize::from(is_first), Ordering::Relaxed);
        self.memory.add_unsent(bytes);
    }

    fn less(&self, bytes: u64, is_last: bool) {
        self.results.fetch_sub(usize::from(is_last), Ordering::Relaxed);
        self.memory.less_unsent(bytes);
    }
}

/// The result of one query, as far as it was made and has not gone.
#[derive(Debug)]
pub(crate) struct Outgoing {
    all: Arc<Unsent>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// Whether it counts in the budget: its query is over.
    counts: bool,
}

impl Outgoing {
    /// Nothing yet.
    pub(crate) fn new(all: &Arc<Unsent>) -> Arc<Self> {
        Arc::new(Self { all: Arc::clone(all), state: Mutex::default() })
    }

    /// `bytes` more, until what is returned is dropped.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        let bytes = (bytes as u64).max(1);
        let mut state = self.state.lock();
        state.bytes += bytes;
        // A task of the query may send once more while it is being ended.
        if state.counts {
            self.all.add(bytes, state.bytes == bytes);
        }
        Charge { of: Arc::clone(self), bytes }
    }

    /// The query is over, and has given back what it was granted.
    pub(crate) fn run_is_over(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.counts, true) && state.bytes > 0 {
            self.all.add(state.bytes, true);
        }
    }

    fn gone(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.bytes -= bytes;
        let (counts, is_last) = (state.counts, state.bytes == 0);
        drop(state);
        if counts {
            self.all.less(bytes, is_last);
        }
    }
}

/// A part of a result that has not gone to its client. It goes along with that part, and is dropped with the last of it.
#[derive(Debug)]
pub struct Charge {
    of: Arc<Outgoing>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.gone(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryPoolKind;

    #[test]
    fn what_is_left_of_a_query_counts_until_it_has_gone() {
        let memory = Memory::new(MemoryPoolKind::Fair, 1000);
        let all = Unsent::new(memory.clone());
        let outgoing = Outgoing::new(&all);
        let (gone, first, second) = (outgoing.charge(100), outgoing.charge(20), outgoing.charge(3));
        drop(gone);
        assert_eq!((all.results(), memory.held()), (0, 0), "the query has room for it");
        outgoing.run_is_over();
        assert_eq!((all.results(), memory.held(), memory.free()), (1, 23, 977));
        drop(first);
        assert_eq!((all.results(), memory.held()), (1, 3));
        drop(second);
        assert_eq!((all.results(), memory.held(), memory.free()), (0, 0, 1000));
    }

    #[test]
    fn more_than_the_budget_is_counted_as_it_is() {
        let memory = Memory::new(MemoryPoolKind::Fair, 10);
        let outgoing = Outgoing::new(&Unsent::new(memory.clone()));
        let charge = outgoing.charge(100);
        outgoing.run_is_over();
        assert_eq!((memory.held(), memory.free()), (100, 0));
        drop(charge);
        assert_eq!(memory.free(), 10);
    }

    #[test]
    fn a_result_that_has_gone_leaves_nothing() {
        let memory = Memory::new(MemoryPoolKind::Fair, 1000);
        let all = Unsent::new(memory.clone());
        let outgoing = Outgoing::new(&all);
        drop(outgoing.charge(5));
        outgoing.run_is_over();
        assert_eq!((all.results(), memory.held()), (0, 0));
        drop((outgoing.charge(5), outgoing.charge(0)));
        assert_eq!((all.results(), memory.held()), (0, 0), "a late one");
    }
}
