//! Compares what queries hold with what the process really has, and sheds load before the kernel does.
//!
//! DataFusion counts what its operators keep, and not all of it. So a thread looks at the allocator, more often the less
//! is free: what is there beyond what queries hold is taken off the budget, and operators that spill do so
//! earlier. When that is not enough it stops new queries, empties caches, and in the end ends the largest query, if that
//! helps: what was there before any query ran is none of theirs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use tracing::{info, warn};

use super::Memory;
use super::cgroup::Cgroup;

/// While nothing is free, or a query waits for memory. A look takes half a millisecond.
const LOOK_SOON: Duration = Duration::from_millis(10);
/// While much is free, or no query runs.
const LOOK_LATE: Duration = Duration::from_millis(100);
/// How many bytes may be allocated in a second: what is free is not gone before the next look.
const PACE: u64 = 4 << 30;
/// What the process has without any query: code's data, connections, caches of metadata.
const BASE_MIN: u64 = 64 << 20;
/// How far past the budget memory may be before a query is ended for it: one part in this many, and this much. By then
/// operators have spilled for a while, as nothing is free.
const TOLERATED_SHARE: u64 = 20;
const TOLERATED: u64 = 64 << 20;
/// The share of a cgroup's limit that is left: above it a query is ended.
const CGROUP_LEFT: u64 = 16;
/// Free pages are given back when resident memory is this much above live memory, or one part in so many of the budget, and
/// at most this often: a query that goes on has to be given new ones for them, and the allocator lets go of old ones itself.
const PURGE_ABOVE: u64 = 96 << 20;
const PURGE_SHARE: u64 = 16;
/// The same when memory is short: before anybody has to suffer.
const PURGE_ABOVE_SHORT: u64 = 48 << 20;
const PURGE_EVERY: Duration = Duration::from_millis(200);
/// All free pages are given back once nothing has run for this long.
const REST: Duration = Duration::from_secs(1);
/// How long a query that was ended has to let go before the next is ended.
const LETTING_GO: Duration = Duration::from_millis(500);
/// What a query has to hold to be ended: what is missing, or one part in this many of the budget if that is less.
const WORTH_SHARE: u64 = 10;

/// What the process's allocator says of itself, and what it can be asked for.
pub trait Allocator: Send + Sync + 'static {
    /// Bytes in live allocations; `None` when it does not know.
    fn allocated(&self) -> Option<u64>;

    /// Gives free pages back to the system.
    fn purge(&self);
}

/// What the guard can do about the load.
pub(crate) trait Load: Send + Sync {
    /// Stops or goes on admitting queries that need much memory.
    fn pause(&self, paused: bool);

    /// Memory may have become free: lets those in who wait for it. Returns how many still wait.
    fn poke(&self) -> usize;

    /// How many queries run.
    fn running(&self) -> usize;

    /// Ends the query that holds most, if that is as much as `least`; returns how many bytes it is.
    fn end_largest(&self, limit: u64, least: u64) -> Option<u64>;
}

/// What there is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    allocated: u64,
    resident: u64,
    /// Used of the cgroup's limit, and that limit.
    cgroup: Option<(u64, u64)>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Verdict {
    unaccounted: u64,
    /// Beyond the budget, or too near to the kernel's limit: to be had back from caches.
    reclaim: u64,
    pause: bool,
    purge: bool,
    end_largest: bool,
}

/// Watches the memory of the process. Ends with `load`.
pub(crate) struct Guard {
    memory: Memory,
    allocator: Arc<dyn Allocator>,
    cgroup: Option<Cgroup>,
    base: u64,
}

impl Guard {
    /// A guard for the budget of `memory`. What is allocated now counts as what the process has without queries.
    pub(crate) fn new(memory: Memory, allocator: Arc<dyn Allocator>) -> Self {
        let base = allocator.allocated().unwrap_or_else(resident).max(BASE_MIN);
        let cgroup = Cgroup::of_this_process();
        if let Some(group) = &cgroup {
            let needed = memory.limit() + memory.limit() / TOLERATED_SHARE + base + TOLERATED;
            if group.limit < needed {
                warn!(
                    cgroup_limit = %ByteSize(group.limit), memory_limit = %ByteSize(memory.limit()),
                    "the cgroup's limit leaves little beside engine.memory_limit; queries may be ended early"
                );
            }
        }
        Self { memory, allocator, cgroup, base }
    }

    /// Looks until `load` is gone.
    pub(crate) fn watch(self, load: &dyn Fn() -> Option<Arc<dyn Load>>) {
        let (mut paused, mut purged, mut ended) = (false, None, None);
        // What was there beyond what is held when no query ran.
        let mut nobodys = u64::MAX;
        // When the last query ended, until free pages were given back after it.
        let mut rests_since = None;
        let due = |last: Option<Instant>, every| last.is_none_or(|at: Instant| at.elapsed() >= every);
        while let Some(load) = load() {
            let busy = load.running() > 0;
            let (reading, held) = (self.read(), self.memory.held());
            let verdict = self.judge(reading, held);
            nobodys = if busy { nobodys.min(verdict.unaccounted) } else { verdict.unaccounted };
            let mut waits = false;
            let mut freed = 0;
            if let Memory::Fair(budget) = &self.memory {
                budget.set_unaccounted(verdict.unaccounted);
                if verdict.reclaim > 0 {
                    freed = budget.reclaim(verdict.reclaim);
                }
                if paused != verdict.pause {
                    paused = verdict.pause;
                    load.pause(paused);
                    let uploaded = budget.uploaded();
                    info!(
                        paused, held = %ByteSize(held - uploaded.min(held)), uploaded = %ByteSize(uploaded),
                        unaccounted = %ByteSize(verdict.unaccounted), "memory pressure"
                    );
                }
                // What caches had was enough: no query is to blame.
                if verdict.end_largest && freed < verdict.reclaim.max(1) && due(ended, LETTING_GO) {
                    let missing = verdict.reclaim - freed.min(verdict.reclaim);
                    let least = self.least(missing, verdict.unaccounted - nobodys);
                    if let Some(held) = load.end_largest(self.memory.limit(), least) {
                        ended = Some(Instant::now());
                        warn!(held = %ByteSize(held), "ended the largest query to stay within the memory limit");
                    }
                }
                waits = load.poke() > 0;
                if !waits {
                    budget.nobody_waits();
                }
            }
            if busy {
                rests_since = Some(Instant::now());
            }
            let rests = rests_since.is_some_and(|since| since.elapsed() >= REST);
            if rests || ((verdict.purge || freed > 0) && due(purged, PURGE_EVERY)) {
                rests_since = rests_since.filter(|_| !rests);
                self.allocator.purge();
                purged = Some(Instant::now());
            }
            drop(load);
            std::thread::sleep(match busy {
                true if waits => LOOK_SOON,
                true => self.until_next(reading, held),
                false => LOOK_LATE,
            });
        }
    }

    /// What the largest query has to hold for its end to help when so many bytes are `missing`, and queries have `hidden`
    /// bytes beside what they say.
    fn least(&self, missing: u64, hidden: u64) -> u64 {
        missing.min(self.memory.limit() / WORTH_SHARE).saturating_sub(hidden)
    }

    /// How long what is free lasts, whatever queries do.
    fn until_next(&self, reading: Reading, held: u64) -> Duration {
        let queries = reading.allocated.saturating_sub(self.base);
        let free = self.memory.limit().saturating_sub(queries.max(held));
        let free = reading.cgroup.map_or(free, |(used, limit)| free.min(limit.saturating_sub(used)));
        Duration::from_millis(free / (PACE / 1000)).clamp(LOOK_SOON, LOOK_LATE)
    }

    fn read(&self) -> Reading {
        let resident = resident();
        Reading {
            allocated: self.allocator.allocated().unwrap_or(resident),
            resident,
            cgroup: self.cgroup.as_ref().and_then(|group| Some((group.used()?, group.limit))),
        }
    }

    fn judge(&self, reading: Reading, held: u64) -> Verdict {
        let limit = self.memory.limit();
        let queries = reading.allocated.saturating_sub(self.base);
        let over = queries.saturating_sub(limit);
        let too_near = |(used, limit): (u64, u64)| used.saturating_sub(limit - limit / CGROUP_LEFT);
        let too_near = reading.cgroup.map_or(0, too_near);
        let above = if over > 0 || too_near > 0 { PURGE_ABOVE_SHORT } else { PURGE_ABOVE.max(limit / PURGE_SHARE) };
        let purge = reading.resident > reading.allocated + above;
        Verdict {
            unaccounted: queries.saturating_sub(held),
            reclaim: if purge { over } else { over.max(too_near) },
            pause: over > 0 || too_near > 0,
            purge,
            end_largest: over > TOLERATED + limit / TOLERATED_SHARE || (too_near > 0 && !purge),
        }
    }
}

/// Resident memory of this process, in bytes, without the pages of files: those of the program itself are as many as free
/// pages that are worth giving back, and no allocator can.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split_whitespace().skip(1).map(|pages| pages.parse().unwrap_or(0));
    let (resident, of_files): (u64, u64) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    let pages = resident.saturating_sub(of_files);
    // The page size of every platform this is served on; a wrong one would only purge too often.
    pages * 4096
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::*;
    use crate::config::MemoryPoolKind;

    const MIB: u64 = 1 << 20;

    struct Fixed(u64);

    impl Allocator for Fixed {
        fn allocated(&self) -> Option<u64> {
            Some(self.0)
        }

        fn purge(&self) {}
    }

    #[test]
    fn what_is_done_depends_on_how_far_past_the_budget_it_is() {
        let memory = Memory::new(MemoryPoolKind::Fair, 1000 * MIB);
        let guard = Guard { memory, allocator: Arc::new(Fixed(0)), cgroup: None, base: 100 * MIB };
        let judge = |allocated: u64, resident: u64, cgroup, held: u64| {
            let cgroup = Option::map(cgroup, |(used, limit): (u64, u64)| (used * MIB, limit * MIB));
            guard.judge(Reading { allocated: allocated * MIB, resident: resident * MIB, cgroup }, held * MIB)
        };
        let fine = Verdict::default();
        assert_eq!(judge(90, 120, None, 0), fine);
        assert_eq!(judge(700, 750, None, 600), fine, "all of it is held");
        assert_eq!(judge(700, 750, None, 500), Verdict { unaccounted: 100 * MIB, ..fine });
        let pressed = Verdict { unaccounted: 20 * MIB, reclaim: 20 * MIB, pause: true, ..fine };
        assert_eq!(judge(1120, 1150, None, 1000), pressed);
        let over = Verdict { unaccounted: 115 * MIB, reclaim: 115 * MIB, pause: true, end_largest: true, ..fine };
        assert_eq!(judge(1215, 1250, None, 1000), over);
        assert!(!judge(1214, 1250, None, 1000).end_largest);
        assert_eq!(judge(500, 700, None, 400), Verdict { purge: true, ..fine }, "free pages are given back");
        assert_eq!(judge(500, 590, None, 400), fine, "not so few");
        let short = Verdict { pause: true, purge: true, ..fine };
        assert_eq!(judge(500, 590, Some((980, 1024)), 400), short, "unless memory is short");
        assert_eq!(judge(500, 520, Some((900, 1000)), 400), fine);
        let near = Verdict { reclaim: 20 * MIB, pause: true, end_largest: true, ..fine };
        assert_eq!(judge(500, 520, Some((980, 1024)), 400), near);
        let purge_first = Verdict { pause: true, purge: true, ..fine };
        assert_eq!(judge(500, 900, Some((980, 1024)), 400), purge_first);
    }

    #[test]
    fn a_query_is_ended_only_for_what_it_could_give() {
        let memory = Memory::new(MemoryPoolKind::Fair, 1000 * MIB);
        let guard = Guard { memory, allocator: Arc::new(Fixed(0)), cgroup: None, base: 100 * MIB };
        let least = |missing: u64, hidden: u64| guard.least(missing * MIB, hidden * MIB) / MIB;
        assert_eq!(least(40, 0), 40, "all that is missing");
        assert_eq!(least(400, 0), 100, "a tenth of the limit is a beginning");
        assert_eq!(least(400, 30), 70, "it may have what came since it began");
        assert_eq!(least(400, 300), 0, "whatever it says it holds");
    }

    /// What is there and which query is ended is given; how the guard is told what was done.
    struct Fake {
        allocated: AtomicU64,
        running: AtomicUsize,
        asked: Mutex<Vec<u64>>,
    }

    impl Allocator for Arc<Fake> {
        fn allocated(&self) -> Option<u64> {
            Some(self.allocated.load(Ordering::Relaxed))
        }

        fn purge(&self) {}
    }

    impl Load for Fake {
        fn pause(&self, _: bool) {}

        fn poke(&self) -> usize {
            0
        }

        fn running(&self) -> usize {
            self.running.load(Ordering::Relaxed)
        }

        fn end_largest(&self, _: u64, least: u64) -> Option<u64> {
            self.asked.lock().push(least);
            None
        }
    }

    #[test]
    fn what_was_there_before_a_query_ran_is_not_laid_to_it() {
        let base = BASE_MIN;
        let fake = Arc::new(Fake { allocated: base.into(), running: AtomicUsize::new(0), asked: Mutex::default() });
        let memory = Memory::new(MemoryPoolKind::Fair, 1000 * MIB);
        let guard = Guard { memory, allocator: Arc::new(Arc::clone(&fake)), cgroup: None, base };
        let looks = AtomicUsize::new(0);
        // What is there and how many run, look by look.
        let course = [(1200, 0), (1200, 1), (1290, 1)];
        guard.watch(&|| {
            let (allocated, running) = *course.get(looks.fetch_add(1, Ordering::Relaxed))?;
            fake.allocated.store(base + allocated * MIB, Ordering::Relaxed);
            fake.running.store(running, Ordering::Relaxed);
            Some(Arc::clone(&fake) as Arc<dyn Load>)
        });
        assert_eq!(*fake.asked.lock(), [100 * MIB, 100 * MIB, 10 * MIB]);
    }

    #[test]
    fn it_looks_more_often_the_less_is_free() {
        let memory = Memory::new(MemoryPoolKind::Fair, 1024 * MIB);
        let guard = Guard { memory, allocator: Arc::new(Fixed(0)), cgroup: None, base: 100 * MIB };
        let next = |allocated: u64, held: u64, cgroup| {
            let reading = Reading { allocated: allocated * MIB, resident: 0, cgroup };
            guard.until_next(reading, held * MIB).as_millis()
        };
        assert_eq!(next(100, 0, None), 100);
        assert_eq!(next(924, 0, None), 48, "200 MiB at 4 GiB a second");
        assert_eq!(next(100, 824, None), 48);
        assert_eq!(next(100, 0, Some((824 * MIB, 1024 * MIB))), 48);
        assert_eq!(next(1124, 0, None), 10);
        assert_eq!(next(2000, 2000, Some((1, 0))), 10);
    }

    #[test]
    fn resident_memory_is_read() {
        assert!(resident() > MIB);
    }
}
