//! Which partition takes which rows next.
//!
//! All partitions of one execution take from one queue, so that none is idle while another has rows left. A plan may be
//! executed again, and by several at once: each execution is told by its task context and has a queue of its own.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use datafusion::execution::TaskContext;
use parking_lot::Mutex;

use super::rows::Rows;
use crate::file::Asked;

/// Segments that are looked ahead at: enough of small ones to hide the way to a store.
const AHEAD_MAX: usize = 64;

/// What is left to be scanned of one execution.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Rows still wanted.
    wanted: Option<AtomicUsize>,
    /// Rows that a partition takes at a time.
    morsel: usize,
}

#[derive(Debug)]
struct State {
    /// Segments nobody has looked at.
    unopened: VecDeque<u32>,
    /// Rows in memory that nobody has taken.
    open: VecDeque<Arc<Rows>>,
    /// The first row not taken of the first of them.
    next: usize,
    /// What is on its way for segments nobody has looked at.
    asked: HashMap<u32, Asked>,
}

/// What a partition is to do next.
#[derive(Debug)]
pub(super) enum Turn {
    /// To scan these rows.
    Rows(Arc<Rows>, Range<usize>),
    /// To get this segment, which is not in memory, though its bytes may be on their way.
    Absent(u32, Option<Asked>),
    /// Nothing: all was taken.
    Done,
}

impl Queue {
    /// A queue of `segments`, of whose rows `fetch` are wanted.
    pub(super) fn new(segments: impl IntoIterator<Item = u32>, morsel: usize, fetch: Option<usize>) -> Self {
        let unopened = segments.into_iter().collect();
        let state = State { unopened, open: VecDeque::new(), next: 0, asked: HashMap::new() };
        Self { state: Mutex::new(state), wanted: fetch.map(AtomicUsize::new), morsel: morsel.max(1) }
    }

    /// The next rows. `look` says what is in memory of a segment: `Err` = not all that is needed.
    pub(super) fn take(&self, mut look: impl FnMut(u32) -> Result<Option<Rows>, u32>) -> Turn {
        if self.wanted() == Some(0) {
            return Turn::Done;
        }
        let state = &mut *self.state.lock();
        loop {
            if let Some(rows) = state.open.front() {
                let start = state.next.max(rows.range.start);
                let end = rows.range.end.min(start.saturating_add(self.morsel));
                let taken = (rows.clone(), start..end);
                if end >= rows.range.end {
                    state.open.pop_front();
                    state.next = 0;
                } else {
                    state.next = end;
                }
                if taken.1.is_empty() {
                    continue;
                }
                return Turn::Rows(taken.0, taken.1);
            }
            // In memory or not is found out in no time, so the others may wait for that.
            let Some(segment) = state.unopened.pop_front() else { return Turn::Done };
            let asked = state.asked.remove(&segment);
            match look(segment) {
                Ok(Some(rows)) => state.open.push_back(Arc::new(rows)),
                Ok(None) => {}
                Err(segment) => return Turn::Absent(segment, asked),
            }
        }
    }

    /// Has the bytes of the next segments brought near by `ask`, until that does nothing.
    pub(super) fn look_ahead(&self, mut ask: impl FnMut(u32) -> Option<Asked>) {
        let state = &mut *self.state.lock();
        for segment in state.unopened.iter().take(AHEAD_MAX) {
            if let Entry::Vacant(place) = state.asked.entry(*segment) {
                let Some(asked) = ask(*segment) else { return };
                place.insert(asked);
            }
        }
    }

    /// Rows that were got into memory, for all partitions to take.
    pub(super) fn share(&self, rows: Rows) {
        self.state.lock().open.push_back(Arc::new(rows));
    }

    /// How many rows are still wanted, if not all.
    pub(super) fn wanted(&self) -> Option<usize> {
        self.wanted.as_ref().map(|wanted| wanted.load(Ordering::Relaxed))
    }

    /// How many of `rows` rows may be given.
    pub(super) fn claim(&self, rows: usize) -> usize {
        let Some(wanted) = &self.wanted else { return rows };
        let mut granted = 0;
        let less = |left: usize| {
            granted = left.min(rows);
            Some(left - granted)
        };
        // Always `Ok`, as the closure always gives a number.
        let _ = wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        granted
    }
}

/// The queues of a plan's executions.
#[derive(Debug, Default)]
pub(super) struct Executions {
    running: Mutex<Vec<Execution>>,
}

#[derive(Debug)]
struct Execution {
    context: Weak<TaskContext>,
    queue: Arc<Queue>,
    /// Partitions that were opened.
    opened: Vec<bool>,
}

impl Executions {
    /// The queue of the execution to which `partition` of `partitions` belongs; `new` makes one for its first partition.
    ///
    /// A partition that is opened twice in one context, as a join does that reads a side again, begins another execution.
    pub(super) fn queue(
        &self,
        context: &Arc<TaskContext>,
        partition: usize,
        partitions: usize,
        new: impl FnOnce() -> Queue,
    ) -> Arc<Queue> {
        let running = &mut *self.running.lock();
        running.retain(|execution| execution.context.strong_count() > 0 && execution.opened.contains(&false));
        let own = Arc::downgrade(context);
        let known = running.iter_mut().find(|execution| {
            execution.context.ptr_eq(&own) && execution.opened.get(partition).is_some_and(|opened| !opened)
        });
        if let Some(execution) = known {
            execution.opened[partition] = true;
            return execution.queue.clone();
        }
        let queue = Arc::new(new());
        let opened = (0..partitions).map(|at| at == partition).collect();
        running.push(Execution { context: own, queue: queue.clone(), opened });
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(number: u32, len: usize) -> Rows {
        Rows::new(number, len, Vec::new())
    }

    fn drain(queue: &Queue, look: impl Fn(u32) -> Result<Option<Rows>, u32>) -> Vec<(u32, Range<usize>)> {
        let mut taken = Vec::new();
        loop {
            match queue.take(&look) {
                Turn::Rows(rows, range) => taken.push((rows.number, range)),
                Turn::Absent(segment, _) => taken.push((segment, 0..0)),
                Turn::Done => return taken,
            }
        }
    }

    #[test]
    fn every_row_is_taken_once_and_in_order() {
        let queue = Queue::new([0, 1, 2, 3], 10, None);
        let look = |segment| match segment {
            0 => Ok(Some(rows(0, 25))),
            1 => Err(1),
            2 => Ok(None),
            _ => Ok(Some(Rows { range: 3..4, ..rows(3, 9) })),
        };
        assert_eq!(drain(&queue, look), [(0, 0..10), (0, 10..20), (0, 20..25), (1, 0..0), (3, 3..4)]);
        queue.share(rows(1, 0));
        queue.share(rows(1, 5));
        assert_eq!(drain(&queue, look), [(1, 0..5)], "what was loaded is shared");
    }

    #[test]
    fn no_more_rows_are_granted_than_are_wanted() {
        let queue = Queue::new([0], 10, Some(7));
        assert_eq!([queue.claim(5), queue.claim(5), queue.claim(1)], [5, 2, 0]);
        assert!(matches!(queue.take(|_| Ok(Some(rows(0, 9)))), Turn::Done));
        assert_eq!(Queue::new([], 10, None).claim(9), 9);
    }

    #[test]
    fn executions_do_not_share_a_queue() {
        let executions = Executions::default();
        let (a, b) = (Arc::new(TaskContext::default()), Arc::new(TaskContext::default()));
        let open = |context: &_, partition| executions.queue(context, partition, 2, || Queue::new([], 1, None));
        let (a0, b0) = (open(&a, 0), open(&b, 0));
        assert!(!Arc::ptr_eq(&a0, &b0));
        assert!(Arc::ptr_eq(&a0, &open(&a, 1)) && Arc::ptr_eq(&b0, &open(&b, 1)));
        let again = open(&a, 1);
        assert!(!Arc::ptr_eq(&a0, &again), "the same partition once more is another execution");
        assert!(Arc::ptr_eq(&again, &open(&a, 0)));
        drop((a, b));
        open(&Arc::new(TaskContext::default()), 0);
        assert_eq!(executions.running.lock().len(), 1, "what is over is forgotten");
    }
}
