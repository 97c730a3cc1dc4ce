//! The cache of decoded columns: lookup, and loading by one for all.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use datafusion::common::HashMap;
use datafusion::common::runtime::SpawnedTask;
use datafusion::error::{DataFusionError, Result};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared, try_join_all};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::column::Column;
use crate::file::{Load, Size};
use crate::key::{ColumnKey, FileKey};
use crate::room::{Limit, Room};
use crate::shelf::{Kept, Shelf, WHOLE};
use crate::statistics::{Counters, Statistics, TableStatistics};

/// When columns that are not in memory are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The first time.
    AtOnce,
    /// When as much of them was read from the file as one reading of all: see [`Cache::pay`].
    Paid,
    /// Then as well, but not for who asks: reading the few rows it wants takes less time than waiting.
    Behind,
}

/// How often a column must have been asked for lately to take the room of others.
const USES_TO_EVICT: u8 = 2;
/// Nothing is let in for as long after queries needed memory back: what is loaded now would be taken from them again.
const REST: Duration = Duration::from_secs(1);
/// Tables that are counted; at the bound those without columns in memory are counted anew.
const TABLES_MAX: usize = 4096;

/// Decoded columns in memory, shared by the whole process. The bytes in it, and those that are being loaded, never pass its
/// limit.
///
/// It is asked for all columns that a scan needs of one segment, once per scan: each ask makes a column worth more room.
pub struct Cache {
    limit: Limit,
    /// What queries leave of the memory that it is a part of, in bytes.
    left: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// One for each column that may be read at the same time.
    reads: Semaphore,
    /// Where columns are loaded that nobody waits for.
    behind: OnceLock<Handle>,
    /// One of those loads at a time: what is next is asked for again.
    turn: Arc<Semaphore>,
    /// The last of them.
    load: Mutex<Option<SpawnedTask<()>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shelf: Shelf,
    loading: HashMap<ColumnKey, InFlight>,
    loads: u64,
    rests_until: Option<Instant>,
    tables: HashMap<Arc<str>, Counters>,
    evictions: u64,
    reclaimed: u64,
}

/// A column that is being loaded, for as long as somebody waits for it.
struct InFlight {
    id: u64,
    load: WeakShared<Loading>,
}

type Loading = BoxFuture<'static, Result<Arc<Column>, Arc<DataFusionError>>>;

enum Found {
    Column(Arc<Column>),
    Loading(Shared<Loading>),
    Missing,
}

impl Cache {
    /// An empty cache that holds up to `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // While one column is fetched another is decoded.
        let reads = Semaphore::new(2 * cores);
        Arc::new(Self {
            limit: Limit::new(limit),
            left: OnceLock::new(),
            reads,
            behind: OnceLock::new(),
            turn: Arc::new(Semaphore::new(1)),
            load: Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// From now on columns that nobody waits for are loaded on `runtime`, and not where they were asked for. Set once.
    pub fn load_behind(&self, runtime: Handle) {
        let _ = self.behind.set(runtime);
    }

    /// From now on `left` is asked how many more bytes queries leave to it, beside what it has. Set once.
    pub fn share_with_queries(&self, left: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.left.set(Box::new(left));
    }

    /// Bytes that may be loaded now without anything making room.
    fn free(&self) -> u64 {
        self.left.get().map_or(u64::MAX, |left| left()).min(self.limit.free())
    }

    /// Bytes that it may hold.
    pub fn limit(&self) -> u64 {
        self.limit.bytes
    }

    /// Bytes of columns in memory and of those being loaded.
    pub fn used(&self) -> u64 {
        self.limit.taken()
    }

    /// The columns `keys` of one segment, when all are in memory; each then counts as a hit of `table` (`schema.name`).
    /// Nothing is counted otherwise: ask [`Self::get_or_load`] next.
    pub fn get(&self, table: &Arc<str>, keys: &[ColumnKey]) -> Option<Vec<Arc<Column>>> {
        let mut state = self.state.lock();
        if !keys.iter().all(|key| state.shelf.peek(key).is_some()) {
            return None;
        }
        let columns = keys.iter().map_while(|key| state.shelf.ask(key, 1)).collect();
        state.counters(table).hits += keys.len() as u64;
        Some(columns)
    }

    /// A column, if it is in memory now. Nothing is counted: for plans and EXPLAIN.
    pub fn peek(&self, key: &ColumnKey) -> Option<Arc<Column>> {
        self.state.lock().shelf.peek(key).cloned()
    }

    /// The columns `keys` of one segment: from memory, or read by `loader` when they are let in. Counts hits and misses of
    /// `table`. A column that somebody else loads is waited for. `None` = read this segment from its file: it is not worth
    /// the room, for now.
    ///
    /// `when` says which are let in at all. Dropping the future ends the loading, unless another waits for the same column.
    /// Must be polled on a tokio runtime.
    ///
    /// # Errors
    /// As `loader`. All who wait get the error, and the next to ask loads again.
    pub async fn get_or_load(
        self: &Arc<Self>,
        table: &Arc<str>,
        loader: &Arc<dyn Load>,
        keys: &[ColumnKey],
        when: When,
    ) -> Result<Option<Vec<Arc<Column>>>> {
        self.ask(table, loader, keys, when, 1).await
    }

    /// Counts a `share` (0 to 1) of each of these columns as read from the file, because they were not in memory.
    pub fn pay<'a>(&self, keys: impl IntoIterator<Item = &'a ColumnKey>, share: f64) {
        let parts = (share.clamp(0.0, 1.0) * f64::from(WHOLE)).ceil().max(1.0) as u8;
        let mut state = self.state.lock();
        for key in keys {
            state.shelf.pay(key, parts);
        }
    }

    /// As [`Self::get_or_load`], counted as `times` asks.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        table: &Arc<str>,
        loader: &Arc<dyn Load>,
        keys: &[ColumnKey],
        when: When,
        times: u8,
    ) -> Result<Option<Vec<Arc<Column>>>> {
        let (mut found, may_load) = self.find(table, keys, when, times);
        let missing: Vec<usize> = (0..keys.len()).filter(|at| matches!(found[*at], Found::Missing)).collect();
        if when == When::Behind && found.iter().any(|found| !matches!(found, Found::Column(_))) {
            if may_load && !missing.is_empty() {
                self.begin(table, loader, keys);
            }
            return Ok(None);
        }
        if !missing.is_empty() {
            if !may_load {
                return Ok(None);
            }
            let wanted: Vec<ColumnKey> = missing.iter().map(|at| keys[*at].clone()).collect();
            let sizes = loader.sizes(&wanted).await?;
            let wanted: Vec<(usize, Size)> = missing.into_iter().zip(sizes).collect();
            if !self.admit(table, loader, keys, &wanted, &mut found) {
                // Reading takes more room than what is read: near the limit, one after the other may still fit.
                if !self.would_fit(keys, &wanted) {
                    return Ok(None);
                }
                for one in &wanted {
                    if !self.admit(table, loader, keys, std::slice::from_ref(one), &mut found) {
                        return Ok(None);
                    }
                    if let Found::Loading(load) = &found[one.0] {
                        let column = load.clone().await.map_err(DataFusionError::Shared)?;
                        found[one.0] = Found::Column(column);
                    }
                }
            }
        }
        let columns = found.into_iter().map(|found| async {
            match found {
                Found::Column(column) => Ok(column),
                Found::Loading(load) => load.await.map_err(DataFusionError::Shared),
                Found::Missing => unreachable!("what is missing was admitted"),
            }
        });
        try_join_all(columns).await.map(Some)
    }

    /// Begins to load columns that nobody waits for, unless others are being loaded so.
    fn begin(self: &Arc<Self>, table: &Arc<str>, loader: &Arc<dyn Load>, keys: &[ColumnKey]) {
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else { return };
        // Weak, as the cache holds the task.
        let cache = Arc::downgrade(self);
        let (table, loader, keys) = (Arc::clone(table), Arc::clone(loader), keys.to_vec());
        let work = async move {
            let _turn = turn;
            let Some(cache) = cache.upgrade() else { return };
            // Whoever reads the file next is told what is wrong with it.
            let _ = cache.ask(&table, &loader, &keys, When::Paid, 0).await;
        };
        let runtime = self.behind.get().cloned().unwrap_or_else(Handle::current);
        let _on_it = runtime.enter();
        *self.load.lock() = Some(SpawnedTask::spawn(work));
    }

    /// Looks for all of `keys`, and counts. Also says whether those that are missing may be loaded now.
    fn find(&self, table: &Arc<str>, keys: &[ColumnKey], when: When, times: u8) -> (Vec<Found>, bool) {
        let mut state = self.state.lock();
        let found: Vec<Found> = keys
            .iter()
            .map(|key| match state.shelf.ask(key, times) {
                Some(column) => Found::Column(column),
                None => state.loading(key),
            })
            .collect();
        let hits = found.iter().filter(|found| matches!(found, Found::Column(_))).count();
        // Loading behind is no ask: who asked was counted.
        if times > 0 {
            let counters = state.counters(table);
            counters.hits += hits as u64;
            counters.misses += (keys.len() - hits) as u64;
        }
        let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
        let missing = keys.iter().zip(&found).filter(|(_, found)| matches!(found, Found::Missing));
        let is_due = when == When::AtOnce || missing.map(|(key, _)| key).all(|key| state.shelf.is_paid(key));
        (found, is_due && !rests)
    }

    /// Whether all of `wanted`, which are places in `keys`, would fit once they are read.
    fn would_fit(&self, keys: &[ColumnKey], wanted: &[(usize, Size)]) -> bool {
        let kept = wanted.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(size.kept));
        let free = self.free();
        let state = self.state.lock();
        let uses = wanted.iter().map(|(at, _)| state.shelf.uses(&keys[*at])).min().unwrap_or_default();
        let others = if uses < USES_TO_EVICT { 0 } else { state.shelf.bytes_below(uses) };
        kept <= free.saturating_add(others)
    }

    /// Lets all of `wanted` in, which are places in `keys`, and replaces them in `found` as far as they are missing there; or
    /// none, and says `false`.
    // The last handle of a load must not be dropped under the lock, which its end takes: `found` belongs to the caller, and
    // only what is missing is replaced.
    fn admit(
        self: &Arc<Self>,
        table: &Arc<str>,
        loader: &Arc<dyn Load>,
        keys: &[ColumnKey],
        wanted: &[(usize, Size)],
        found: &mut [Found],
    ) -> bool {
        let free = self.free();
        let mut state = self.state.lock();
        let mut missing = Vec::with_capacity(wanted.len());
        for (at, size) in wanted {
            if !matches!(found[*at], Found::Missing) {
                continue;
            }
            // Others may have been faster.
            found[*at] = match state.shelf.peek(&keys[*at]) {
                Some(column) => Found::Column(Arc::clone(column)),
                None => state.loading(&keys[*at]),
            };
            if matches!(found[*at], Found::Missing) {
                missing.push((*at, *size));
            }
        }
        let needed = missing.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(size.reading));
        // What takes most of the cache would leave nothing to all others.
        if needed > self.limit.bytes || missing.iter().any(|(_, size)| size.kept > self.limit.bytes / 2) {
            return false;
        }
        let short = needed.saturating_sub(free.min(self.limit.free()));
        if short > 0 {
            let uses = missing.iter().map(|(at, _)| state.shelf.uses(&keys[*at])).min().unwrap_or_default();
            if uses < USES_TO_EVICT {
                return false;
            }
            let Some(gone) = state.shelf.make_room(short, uses) else { return false };
            state.evictions += gone.len() as u64;
        }
        let rooms = missing.iter().map(|(_, size)| self.limit.take(size.reading));
        // Only a load that turned out larger than it was thought can have been faster.
        let Some(rooms) = rooms.collect::<Option<Vec<Room>>>() else { return false };
        for ((at, _), room) in missing.into_iter().zip(rooms) {
            state.loads += 1;
            let (cache, table, key, id) = (Arc::clone(self), Arc::clone(table), keys[at].clone(), state.loads);
            let load = Flight { cache, table, key, id }.load(Arc::clone(loader), room).boxed().shared();
            let weak = load.downgrade().expect("it is not polled yet");
            state.loading.insert(keys[at].clone(), InFlight { id, load: weak });
            found[at] = Found::Loading(load);
        }
        true
    }

    /// Lets go of up to `bytes` because queries need them, and takes nothing new for a moment. Returns how many there were;
    /// what a query reads now is none of them.
    pub fn reclaim(&self, bytes: u64) -> u64 {
        let mut state = self.state.lock();
        state.rests_until = Some(Instant::now() + REST);
        let gone = state.shelf.let_go(bytes);
        let freed = gone.iter().map(|kept| kept.bytes).sum();
        state.evictions += gone.len() as u64;
        state.reclaimed += freed;
        // Others may look for their columns while the memory is given back.
        drop(state);
        freed
    }

    /// Lets go of all columns of `table`. Those that a query reads now are gone when it ends. Returns their bytes.
    pub fn evict(&self, table: &str) -> u64 {
        let gone = self.state.lock().shelf.remove(|kept| *kept.table == *table);
        gone.iter().map(|kept| kept.bytes).sum()
    }

    /// Takes `files` for gone: their tables have others in their place. Who began to read them before finds them for as long
    /// as nothing else needs the room.
    pub fn retire(&self, files: &HashSet<&FileKey>) {
        self.state.lock().shelf.retire(|file| files.contains(file));
    }

    /// Lets go of all columns, likewise, and forgets what was asked for.
    pub fn clear(&self) -> u64 {
        let gone = self.state.lock().shelf.clear();
        gone.iter().map(|kept| kept.bytes).sum()
    }

    /// Bytes in memory that could be had back, or room that is not taken, for columns that were asked for `uses` times.
    pub(crate) fn available(&self, uses: u8) -> u64 {
        self.free() + self.state.lock().shelf.bytes_below(uses)
    }

    /// Bytes of columns in memory: what [`Self::reclaim`] could give at most.
    pub fn reclaimable(&self) -> u64 {
        self.state.lock().shelf.bytes_below(u8::MAX)
    }

    /// What it holds and did.
    pub fn statistics(&self) -> Statistics {
        let state = self.state.lock();
        let mut tables: BTreeMap<_, _> =
            state.tables.iter().map(|(table, counters)| (Arc::clone(table), counters.show())).collect();
        for kept in state.shelf.kept() {
            let table = tables.entry(Arc::clone(&kept.table)).or_default();
            table.columns += 1;
            table.bytes += kept.bytes;
        }
        Statistics {
            limit_bytes: self.limit.bytes,
            used_bytes: self.limit.taken(),
            loading: state.loading.len(),
            evictions: state.evictions,
            reclaimed_bytes: state.reclaimed,
            total: TableStatistics::total(tables.values()),
            tables,
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} of {} bytes)", self.limit.taken(), self.limit.bytes)
    }
}

impl State {
    fn loading(&self, key: &ColumnKey) -> Found {
        // Gone when nobody waits any more: the load is being dropped just now.
        self.loading.get(key).and_then(|flight| flight.load.upgrade()).map_or(Found::Missing, Found::Loading)
    }

    fn counters(&mut self, table: &Arc<str>) -> &mut Counters {
        if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(table) {
            let kept: HashSet<&Arc<str>> = self.shelf.kept().map(|kept| &kept.table).collect();
            self.tables.retain(|table, _| kept.contains(table));
        }
        self.tables.entry(Arc::clone(table)).or_default()
    }

    /// Ends the load `id`, unless another has taken its place.
    fn landed(&mut self, key: &ColumnKey, id: u64) {
        if self.loading.get(key).is_some_and(|flight| flight.id == id) {
            self.loading.remove(key);
        }
    }
}

/// One load. However it ends, also by nobody waiting for it any more, the way is then free for the next.
struct Flight {
    cache: Arc<Cache>,
    table: Arc<str>,
    key: ColumnKey,
    id: u64,
}

impl Flight {
    async fn load(self, loader: Arc<dyn Load>, room: Room) -> Result<Arc<Column>, Arc<DataFusionError>> {
        let (cache, key) = (Arc::clone(&self.cache), self.key.clone());
        // A task of its own: the columns of a segment are read by several threads. The room goes with it, as a task that
        // is dropped may have to come to its next await before it is gone.
        let reading = SpawnedTask::spawn(async move {
            let _turn = cache.reads.acquire().await.expect("it is never closed");
            let started = Instant::now();
            let column = Column::new(loader.load(&key).await?)?;
            Ok::<_, DataFusionError>((column, room, started.elapsed()))
        });
        let read = reading.join().await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)));
        let (column, room, took) = read.flatten().map_err(Arc::new)?;
        Ok(self.keep(column, room, took))
    }

    fn keep(&self, mut column: Column, mut room: Room, took: Duration) -> Arc<Column> {
        let bytes = column.bytes();
        let fits = self.cache.limit.resize(&mut room, bytes);
        column.room = fits.then_some(room);
        let column = Arc::new(column);
        let mut state = self.cache.state.lock();
        let counters = state.counters(&self.table);
        counters.loads += 1;
        counters.load_time += took;
        // Larger than it was thought: those who wait get it, and it goes with them.
        if fits {
            let kept = Kept { column: Arc::clone(&column), table: Arc::clone(&self.table), bytes };
            state.shelf.keep(self.key.clone(), kept);
        }
        state.landed(&self.key, self.id);
        column
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.cache.state.lock().landed(&self.key, self.id);
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
