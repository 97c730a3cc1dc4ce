use std::collections::HashMap as Map;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int64Array};
use datafusion::arrow::datatypes::DataType;
use tokio::sync::Notify;

use super::*;
use crate::key::{FileKey, SegmentId};

/// A file whose columns hold their own number, `rows` times.
#[derive(Debug)]
struct Fake {
    rows: usize,
    /// What is said that a column takes, if it is not the truth.
    claimed: Option<u64>,
    /// How many times its room it takes while it is read.
    reading: u64,
    /// How often it gives way while it says sizes, and while it loads.
    yields: usize,
    loads: AtomicUsize,
    broken: AtomicBool,
    /// Loads wait for this, if it is there.
    gate: Option<Notify>,
}

impl Fake {
    fn rows(rows: usize) -> Fake {
        Fake {
            rows,
            claimed: None,
            reading: 1,
            yields: 0,
            loads: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            gate: None,
        }
    }

    fn gated(rows: usize) -> Arc<Fake> {
        Arc::new(Fake { gate: Some(Notify::new()), ..Fake::rows(rows) })
    }

    async fn give_way(&self) {
        for _ in 0..self.yields {
            tokio::task::yield_now().await;
        }
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    fn values(&self, key: &ColumnKey) -> ArrayRef {
        Arc::new(Int64Array::from(vec![i64::from(key.column); self.rows]))
    }

    fn column_bytes(&self) -> u64 {
        Column::new(self.values(&key("f", 0))).expect("a column").bytes()
    }
}

#[async_trait]
impl Load for Fake {
    async fn sizes(&self, keys: &[ColumnKey]) -> Result<Vec<Size>> {
        self.give_way().await;
        let kept = self.claimed.unwrap_or(self.column_bytes());
        let size = Size { reading: kept * self.reading, kept };
        Ok(vec![size; keys.len()])
    }

    async fn load(&self, key: &ColumnKey) -> Result<ArrayRef> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        self.give_way().await;
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        match self.broken.load(Ordering::SeqCst) {
            true => Err(DataFusionError::Execution("f.parquet is broken".to_owned())),
            false => Ok(self.values(key)),
        }
    }
}

fn key(file: &str, column: u32) -> ColumnKey {
    let segment = SegmentId { file: FileKey::new(file), row_group: 0 };
    ColumnKey { segment, column, data_type: DataType::Int64 }
}

fn keys(file: &str, columns: std::ops::Range<u32>) -> Vec<ColumnKey> {
    columns.map(|column| key(file, column)).collect()
}

fn table() -> Arc<str> {
    "public.t".into()
}

type Loader = Arc<dyn Load>;

async fn ask(cache: &Arc<Cache>, loader: &Arc<Fake>, keys: &[ColumnKey]) -> Result<Option<Vec<Arc<Column>>>> {
    match cache.get(&table(), keys) {
        Some(columns) => Ok(Some(columns)),
        None => cache.get_or_load(&table(), &(Arc::clone(loader) as Loader), keys, When::AtOnce).await,
    }
}

async fn is_let_in(cache: &Arc<Cache>, loader: &Arc<Fake>, keys: &[ColumnKey]) -> bool {
    ask(cache, loader, keys).await.expect("it can be read").is_some()
}

#[tokio::test]
async fn while_there_is_room_anything_is_let_in_at_once() {
    let (loader, cache) = (Arc::new(Fake::rows(100)), Cache::new(1 << 20));
    let wanted = keys("f", 0..3);
    let columns = ask(&cache, &loader, &wanted).await.expect("it can be read").expect("there is room");
    for (column, key) in columns.iter().zip(&wanted) {
        assert_eq!(&column.data, &loader.values(key));
    }
    assert_eq!(cache.used(), 3 * loader.column_bytes());
    assert!(is_let_in(&cache, &loader, &keys("f", 1..4)).await);
    assert_eq!(loader.loads(), 4, "two of three were there");
    let statistics = cache.statistics();
    let of_table = &statistics.tables["public.t"];
    assert_eq!((of_table.hits, of_table.misses, of_table.loads, of_table.columns), (2, 4, 4, 4));
    assert_eq!((of_table.bytes, statistics.used_bytes), (cache.used(), cache.used()));
    assert_eq!((&statistics.total, of_table.hit_rate), (of_table, Some(2.0 / 6.0)));
}

#[tokio::test]
async fn versions_and_types_share_nothing() {
    let (loader, cache) = (Arc::new(Fake::rows(10)), Cache::new(1 << 20));
    let other_type = ColumnKey { data_type: DataType::Int32, ..key("f@1", 0) };
    for (count, key) in [key("f@1", 0), key("f@2", 0), other_type].into_iter().enumerate() {
        assert!(cache.peek(&key).is_none());
        assert!(is_let_in(&cache, &loader, &[key]).await);
        assert_eq!(loader.loads(), count + 1);
    }
}

#[tokio::test]
async fn a_scan_of_more_than_fits_does_not_flush_what_is_used() {
    let loader = Arc::new(Fake::rows(100));
    let cache = Cache::new(20 * loader.column_bytes());
    for _ in 0..5 {
        assert!(is_let_in(&cache, &loader, &keys("hot", 0..10)).await);
    }
    // Twice over ten times more than fits; the first time around takes what is free.
    let mut let_in = [0, 0];
    for let_in in &mut let_in {
        for column in 0..200 {
            *let_in += usize::from(is_let_in(&cache, &loader, &[key("big", column)]).await);
        }
    }
    assert_eq!(let_in, [10, 10], "the same stay: they do not chase each other out");
    let loads = loader.loads();
    assert!(is_let_in(&cache, &loader, &keys("hot", 0..10)).await);
    assert_eq!(loader.loads(), loads, "all were still there");
}

#[tokio::test]
async fn what_is_asked_for_again_takes_the_room_of_what_is_not() {
    let loader = Arc::new(Fake::rows(100));
    let cache = Cache::new(10 * loader.column_bytes());
    assert!(is_let_in(&cache, &loader, &keys("once", 0..10)).await);
    assert!(!is_let_in(&cache, &loader, &keys("new", 0..4)).await, "asked for once, as the others");
    let reader = cache.peek(&key("once", 0)).expect("it is there");
    assert!(is_let_in(&cache, &loader, &keys("new", 0..4)).await, "asked for twice");
    assert_eq!(cache.used(), cache.limit());
    assert_eq!(cache.statistics().evictions, 4);
    assert!(cache.peek(&key("once", 0)).is_some(), "what is being read is not let go of");
    drop(reader);
    assert!(!is_let_in(&cache, &loader, &keys("wide", 0..11)).await);
    assert!(!is_let_in(&cache, &loader, &keys("wide", 0..11)).await, "it would never fit");
    assert!(cache.peek(&key("new", 0)).is_some(), "and drives nothing out");
}

#[tokio::test]
async fn a_column_of_more_than_half_the_cache_never_enters() {
    let loader = Arc::new(Fake::rows(100));
    let cache = Cache::new(2 * loader.column_bytes() - 1);
    assert!(!is_let_in(&cache, &loader, &[key("f", 0)]).await);
    let cache = Cache::new(2 * loader.column_bytes());
    assert!(is_let_in(&cache, &loader, &[key("f", 0)]).await);
}

#[tokio::test]
async fn near_the_limit_one_column_is_read_after_the_other() {
    let loader = Arc::new(Fake { reading: 3, ..Fake::rows(100) });
    let cache = Cache::new(12 * loader.column_bytes());
    assert!(is_let_in(&cache, &loader, &keys("f", 0..4)).await, "twelve while they are read");
    assert!(is_let_in(&cache, &loader, &keys("g", 0..6)).await, "six, of eight that are left");
    assert_eq!(cache.used(), 10 * loader.column_bytes());
    assert!(!is_let_in(&cache, &loader, &keys("h", 0..2)).await, "the last would not fit while it is read");
}

#[tokio::test]
async fn many_who_ask_at_once_load_once() {
    let (loader, cache) = (Fake::gated(100), Cache::new(1 << 20));
    let asks: Vec<_> = (0..20)
        .map(|_| {
            let (cache, loader) = (Arc::clone(&cache), Arc::clone(&loader));
            tokio::spawn(async move { ask(&cache, &loader, &keys("f", 0..2)).await })
        })
        .collect();
    while loader.loads() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.used(), 2 * loader.column_bytes(), "what is being loaded counts");
    assert_eq!(cache.statistics().loading, 2);
    loader.gate.as_ref().expect("a gate").notify_one();
    loader.gate.as_ref().expect("a gate").notify_waiters();
    for ask in asks {
        // The second may have come to the gate only now.
        loader.gate.as_ref().expect("a gate").notify_one();
        assert!(ask.await.expect("no panic").expect("it can be read").is_some());
    }
    assert_eq!(loader.loads(), 2);
    assert_eq!(cache.statistics().loading, 0);
}

#[tokio::test]
async fn a_load_goes_on_when_the_one_who_began_it_has_gone() {
    let (loader, cache) = (Fake::gated(100), Cache::new(1 << 20));
    let wanted = [key("f", 0)];
    let dynamic: Loader = loader.clone();
    let of_table = table();
    let mut first = Box::pin(cache.get_or_load(&of_table, &dynamic, &wanted, When::AtOnce));
    let mut second = Box::pin(cache.get_or_load(&of_table, &dynamic, &wanted, When::AtOnce));
    assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
    drop(first);
    loader.gate.as_ref().expect("a gate").notify_one();
    assert!(second.await.expect("it can be read").is_some());
    assert_eq!(loader.loads(), 1);
}

#[tokio::test]
async fn a_load_nobody_waits_for_leaves_nothing() {
    let (loader, cache) = (Fake::gated(100), Cache::new(1 << 20));
    let wanted = [key("f", 0)];
    let dynamic: Loader = loader.clone();
    let of_table = table();
    let mut only = Box::pin(cache.get_or_load(&of_table, &dynamic, &wanted, When::AtOnce));
    assert!(futures::poll!(&mut only).is_pending());
    assert!(cache.used() > 0);
    drop(only);
    while cache.used() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.statistics().loading, 0);
    loader.gate.as_ref().expect("a gate").notify_one();
    assert!(is_let_in(&cache, &loader, &wanted).await);
}

#[tokio::test]
async fn an_error_reaches_all_who_wait_and_the_next_loads_again() {
    let (loader, cache) = (Fake::gated(100), Cache::new(1 << 20));
    loader.broken.store(true, Ordering::SeqCst);
    let wanted = [key("f", 0)];
    let (a, b, ()) = tokio::join!(ask(&cache, &loader, &wanted), ask(&cache, &loader, &wanted), async {
        loader.gate.as_ref().expect("a gate").notify_one();
    });
    for outcome in [a, b] {
        assert!(outcome.expect_err("it is broken").to_string().contains("f.parquet"));
    }
    assert_eq!((loader.loads(), cache.used(), cache.statistics().loading), (1, 0, 0));
    loader.broken.store(false, Ordering::SeqCst);
    loader.gate.as_ref().expect("a gate").notify_one();
    assert!(is_let_in(&cache, &loader, &wanted).await);
}

#[tokio::test]
async fn a_column_larger_than_was_said_is_read_but_not_kept() {
    let loader = Arc::new(Fake { claimed: Some(1), ..Fake::rows(1000) });
    let cache = Cache::new(loader.column_bytes() - 1);
    let columns = ask(&cache, &loader, &[key("f", 0)]).await.expect("it can be read").expect("it was let in");
    assert_eq!(columns[0].data.len(), 1000);
    assert!(cache.peek(&key("f", 0)).is_none());
    assert_eq!(cache.used(), 0);
}

#[tokio::test]
async fn memory_is_given_back_when_queries_need_it() {
    let loader = Arc::new(Fake::rows(100));
    let cache = Cache::new(10 * loader.column_bytes());
    assert!(is_let_in(&cache, &loader, &keys("f", 0..10)).await);
    let one = loader.column_bytes();
    assert_eq!(cache.reclaim(one + 1), 2 * one);
    assert_eq!((cache.used(), cache.reclaimable()), (8 * one, 8 * one));
    assert!(!is_let_in(&cache, &loader, &[key("g", 0)]).await, "there is room, but somebody needs it");
    let reading: Vec<_> = keys("f", 0..10).iter().filter_map(|key| cache.peek(key)).collect();
    assert_eq!(cache.reclaim(u64::MAX), 0, "all is being read");
    drop(reading);
    assert_eq!(cache.reclaim(u64::MAX), 8 * one);
    assert_eq!((cache.used(), cache.statistics().reclaimed_bytes), (0, 10 * one));
}

#[tokio::test]
async fn what_queries_hold_is_not_taken() {
    let loader = Arc::new(Fake::rows(100));
    let one = loader.column_bytes();
    let cache = Cache::new(10 * one);
    let left = Arc::new(AtomicU64::new(5 * one));
    let asked = Arc::clone(&left);
    cache.share_with_queries(move || asked.load(Ordering::SeqCst));
    assert!(!is_let_in(&cache, &loader, &keys("f", 0..6)).await);
    assert!(is_let_in(&cache, &loader, &keys("f", 0..5)).await);
    left.store(0, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(!is_let_in(&cache, &loader, &keys("g", 0..2)).await, "nothing is left");
    }
    assert!(is_let_in(&cache, &loader, &keys("g", 0..2)).await, "it takes the room of its own");
    assert_eq!(cache.used(), 5 * one);
}

#[tokio::test]
async fn a_table_or_all_can_be_let_go_of_and_count_until_they_are_read() {
    let (loader, cache) = (Arc::new(Fake::rows(100)), Cache::new(1 << 20));
    assert!(is_let_in(&cache, &loader, &keys("f", 0..2)).await);
    let other: Arc<str> = "public.other".into();
    cache
        .get_or_load(&other, &(loader.clone() as Loader), &keys("g", 0..1), When::AtOnce)
        .await
        .expect("it can be read");
    let (one, reader) = (loader.column_bytes(), cache.peek(&key("f", 0)));
    assert_eq!(cache.evict("public.t"), 2 * one);
    assert_eq!(cache.used(), 2 * one, "one of it is being read");
    drop(reader);
    assert_eq!(cache.used(), one);
    assert_eq!((cache.evict("public.t"), cache.clear(), cache.used()), (0, one, 0));
}

/// Whatever is asked, dropped, read, reclaimed: the limit holds, and what is counted is what is there.
#[test]
fn the_limit_holds_at_every_step() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    arbtest::arbtest(|u| {
        let loaders: Vec<Arc<Fake>> = [10, 100, 1000].map(|rows| Arc::new(Fake::rows(rows))).into();
        let files = ["small", "middle", "large"];
        let cache = Cache::new(u.int_in_range(0..=40_000)?);
        let mut readers: Vec<Vec<Arc<Column>>> = Vec::new();
        for _ in 0..u.int_in_range(1..=80)? {
            let file = u.choose_index(files.len())?;
            let from = u.int_in_range(0..=20)?;
            let wanted = keys(files[file], from..from + u.int_in_range(1..=4)?);
            match u.int_in_range(0..=9)? {
                0 if !readers.is_empty() => drop(readers.swap_remove(u.choose_index(readers.len())?)),
                1 => drop(cache.reclaim(u.int_in_range(0..=20_000)?)),
                2 => drop(cache.evict("public.t")),
                // As if the moment of rest were over.
                3 => cache.state.lock().rests_until = None,
                4 => runtime.block_on(async {
                    let (of_table, loader) = (table(), loaders[file].clone() as Loader);
                    let mut ask = Box::pin(cache.get_or_load(&of_table, &loader, &wanted, When::AtOnce));
                    let _ = futures::poll!(&mut ask);
                    assert!(cache.used() <= cache.limit());
                }),
                choice => {
                    let read = runtime.block_on(ask(&cache, &loaders[file], &wanted)).expect("it can be read");
                    for (column, key) in read.iter().flatten().zip(&wanted) {
                        assert_eq!(&column.data, &loaders[file].values(key));
                    }
                    readers.extend(read.filter(|_| choice > 7));
                }
            }
            assert!(cache.used() <= cache.limit(), "{cache:?}");
        }
        runtime.block_on(async { tokio::task::yield_now().await });
        let statistics = cache.statistics();
        let bytes: u64 = statistics.tables.values().map(|table| table.bytes).sum();
        assert_eq!((bytes, statistics.loading), (cache.reclaimable(), 0));
        readers.clear();
        assert_eq!(cache.used(), bytes);
        cache.clear();
        assert_eq!(cache.used(), 0);
        Ok(())
    });
}

/// Many threads ask, leave before they are answered, reclaim and evict: nothing hangs, and the limit holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_at_once() {
    let loader = Arc::new(Fake { reading: 3, yields: 2, ..Fake::rows(100) });
    let cache = Cache::new(20 * loader.column_bytes());
    let busy = |seed: u64| {
        let (cache, loader) = (Arc::clone(&cache), Arc::clone(&loader));
        async move {
            let mut random = seed;
            for _ in 0..3000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (from, choice) = ((random >> 33) as u32 % 24, (random >> 50) % 40);
                let (wanted, of_table) = (keys("f", from..from + 4), table());
                match choice {
                    0..3 => cache.state.lock().rests_until = None,
                    3 => drop(cache.reclaim(loader.column_bytes() * 3)),
                    4 => drop(cache.evict("public.t")),
                    leave => {
                        let (dynamic, asks) = (loader.clone() as Loader, leave);
                        let mut ask = Box::pin(cache.get_or_load(&of_table, &dynamic, &wanted, When::AtOnce));
                        for _ in 0..asks {
                            if futures::poll!(&mut ask).is_ready() {
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                    }
                }
                assert!(cache.used() <= cache.limit());
            }
        }
    };
    let threads: Vec<_> = (0..8).map(|seed| tokio::spawn(busy(seed))).collect();
    for thread in threads {
        let ended = tokio::time::timeout(Duration::from_secs(60), thread).await;
        ended.expect("nothing hangs").expect("no panic");
    }
    assert!(loader.loads() > 0);
    cache.clear();
    while cache.used() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.statistics().loading, 0);
}

/// Four times more than fits is asked for, column 2n half as often as column n.
#[tokio::test]
async fn under_a_skewed_load_most_asks_are_hits() {
    let loader = Arc::new(Fake::rows(10));
    let cache = Cache::new(100 * loader.column_bytes());
    let mut seed = 1_u64;
    let mut hits = Map::new();
    for turn in 0..40_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (seed >> 11) as f64 / (1_u64 << 53) as f64;
        let column = (400.0_f64.powf(uniform) - 1.0) as u32;
        let before = loader.loads();
        let let_in = is_let_in(&cache, &loader, &[key("f", column)]).await;
        *hits.entry(turn / 20_000).or_insert(0) += usize::from(let_in && loader.loads() == before);
    }
    // With the hundred most likely always there it would be log 100 / log 400 = 0.77.
    let rate = hits[&1] as f64 / 20_000.0;
    assert!(rate > 0.76, "{rate}");
}
