//! A bounded map whose entries expire when nobody uses them.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What happens to one more entry when the map is full of live ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// It is not taken in.
    Refuse,
    /// Those that nobody used for so long make room. If there are none, it is not taken in.
    EvictUnused(Duration),
    /// The entry that was used longest ago makes room.
    EvictOldest,
}

/// At most `max` entries, each living for `ttl` after its last use. Values are handed out by clone. None is dropped while
/// the map is locked: what it holds may come back here when it goes.
#[derive(Debug)]
pub(crate) struct Expiring<K, V> {
    entries: Mutex<Entries<K, V>>,
    max: usize,
    weight_max: usize,
    ttl: Duration,
    when_full: WhenFull,
}

#[derive(Debug)]
struct Entries<K, V> {
    by_key: HashMap<K, Entry<V>>,
    /// Keys by the turn of their last use: the first is the one that was used longest ago.
    order: BTreeMap<u64, K>,
    turn: u64,
    /// The sum of all weights.
    weight: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: usize,
    used: Instant,
    turn: u64,
}

/// The map is full of entries that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl<K: Eq + Hash + Clone, V> Entries<K, V> {
    fn put(&mut self, key: K, value: V, weight: usize) -> Option<V> {
        let before = self.remove(&key);
        self.turn += 1;
        self.weight += weight;
        self.order.insert(self.turn, key.clone());
        self.by_key.insert(key, Entry { value, weight, used: Instant::now(), turn: self.turn });
        before
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.by_key.remove(key)?;
        self.order.remove(&entry.turn);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    fn remove_oldest(&mut self) -> Option<V> {
        let oldest = self.order.values().next()?.clone();
        self.remove(&oldest)
    }

    /// Moves to `out` what was not used for `ttl`.
    fn expire(&mut self, ttl: Duration, out: &mut Vec<V>) {
        let now = Instant::now();
        while let Some(oldest) = self.order.values().next()
            && self.by_key.get(oldest).is_none_or(|entry| now.duration_since(entry.used) >= ttl)
        {
            out.extend(self.remove_oldest());
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Expiring<K, V> {
    pub(crate) fn new(max: usize, ttl: Duration, when_full: WhenFull) -> Self {
        let entries = Entries { by_key: HashMap::new(), order: BTreeMap::new(), turn: 0, weight: 0 };
        Self { entries: Mutex::new(entries), max, weight_max: usize::MAX, ttl, when_full }
    }

    /// All together weigh no more than this. Where the oldest make room, the newest stays, whatever its weight.
    pub(crate) fn within(self, weight_max: usize) -> Self {
        Self { weight_max, ..self }
    }

    /// The live entry of `key`, which counts as a use.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.change(|entries, out| {
            entries.expire(self.ttl, out);
            let Entry { value, weight, .. } = entries.by_key.get(key)?;
            let (value, weight) = (value.clone(), *weight);
            entries.put(key.clone(), value.clone(), weight);
            Some(value)
        })
    }

    /// Puts `value` under `key`, over an older one.
    ///
    /// # Errors
    /// [`Full`], when the map refuses and all its entries are live.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<(), Full> {
        self.insert_weighing(key, value, 0)
    }

    /// As [`Self::insert`], for a value that weighs `weight`.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub(crate) fn insert_weighing(&self, key: K, value: V, weight: usize) -> Result<(), Full> {
        self.change(|entries, out| {
            let is_full = |entries: &Entries<K, V>| {
                let too_many = entries.by_key.len() >= self.max && !entries.by_key.contains_key(&key);
                let evicts = self.when_full == WhenFull::EvictOldest;
                too_many || (!evicts && entries.weight.saturating_add(weight) > self.weight_max)
            };
            if is_full(entries) {
                entries.expire(self.ttl, out);
            }
            if is_full(entries) {
                match self.when_full {
                    WhenFull::EvictOldest => out.extend(entries.remove_oldest()),
                    WhenFull::EvictUnused(unused) => entries.expire(unused, out),
                    WhenFull::Refuse => {}
                }
            }
            if is_full(entries) {
                return Err(Full);
            }
            out.extend(entries.put(key, value, weight));
            while entries.weight > self.weight_max && entries.by_key.len() > 1 {
                out.extend(entries.remove_oldest());
            }
            Ok(())
        })
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.entries.lock().remove(key)
    }

    /// Drops entries that `may_go`, the oldest first, until they weigh `weight` together. Returns how much they weigh.
    pub(crate) fn evict(&self, weight: usize, may_go: impl Fn(&V) -> bool) -> usize {
        self.change(|entries, out| {
            let mut evicted = 0;
            let goes = |key: &&K| {
                let entry = entries.by_key.get(*key).filter(|entry| evicted < weight && may_go(&entry.value));
                evicted += entry.map_or(0, |entry| entry.weight);
                entry.is_some()
            };
            let going: Vec<K> = entries.order.values().filter(goes).cloned().collect();
            out.extend(going.iter().filter_map(|key| entries.remove(key)));
            evicted
        })
    }

    /// What all entries weigh.
    pub(crate) fn weight(&self) -> usize {
        self.entries.lock().weight
    }

    /// How many entries there are, those included that have expired and were not dropped yet.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().by_key.len()
    }

    /// How many live entries `matches`.
    pub(crate) fn count(&self, matches: impl Fn(&V) -> bool) -> usize {
        self.change(|entries, out| {
            entries.expire(self.ttl, out);
            entries.by_key.values().filter(|entry| matches(&entry.value)).count()
        })
    }

    pub(crate) fn retain(&self, keep: impl Fn(&V) -> bool) {
        self.change(|entries, out| {
            let going = entries.by_key.iter().filter(|(_, entry)| !keep(&entry.value));
            let going: Vec<K> = going.map(|(key, _)| key.clone()).collect();
            out.extend(going.iter().filter_map(|key| entries.remove(key)));
        });
    }

    /// Drops what expired. Called now and then, so that an idle server gives memory back.
    pub(crate) fn sweep(&self) {
        self.change(|entries, out| entries.expire(self.ttl, out));
    }

    /// Changes the entries, and drops what is `out` when they are no longer locked.
    fn change<R>(&self, change: impl FnOnce(&mut Entries<K, V>, &mut Vec<V>) -> R) -> R {
        let mut out = Vec::new();
        let changed = change(&mut self.entries.lock(), &mut out);
        drop(out);
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn entries_expire_after_their_last_use() {
        let map = Expiring::new(2, Duration::from_secs(10), WhenFull::Refuse);
        map.insert("a", 1).expect("there is room");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(map.get(&"a"), Some(1), "a use makes it live on");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(map.get(&"a"), Some(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(map.get(&"a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_map_refuses_or_evicts() {
        for (when_full, inserted) in [(WhenFull::Refuse, false), (WhenFull::EvictOldest, true)] {
            let map = Expiring::new(2, Duration::from_secs(10), when_full);
            map.insert("a", 1).expect("there is room");
            tokio::time::advance(Duration::from_secs(1)).await;
            map.insert("b", 2).expect("there is room");
            map.insert("b", 3).expect("an old key needs no room");
            assert_eq!(map.insert("c", 4).is_ok(), inserted);
            assert_eq!(map.get(&"a").is_none(), inserted, "the oldest made room");
            tokio::time::advance(Duration::from_secs(11)).await;
            map.insert("d", 5).expect("what expired makes room");
            assert_eq!(map.count(|_| true), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn entries_are_bounded_by_weight_too() {
        let map = Expiring::new(9, Duration::from_secs(10), WhenFull::EvictOldest).within(10);
        for (key, weight) in [("a", 4), ("b", 4), ("a", 2), ("c", 5)] {
            map.insert_weighing(key, weight, weight).expect("it evicts");
        }
        assert_eq!((map.get(&"b"), map.get(&"a"), map.weight()), (None, Some(2), 7));
        assert_eq!(map.evict(1, |weight| *weight < 5), 2, "the oldest that may go");
        map.insert_weighing("d", 99, 99).expect("it evicts");
        assert_eq!((map.len(), map.get(&"d")), (1, Some(99)), "the newest stays");
        map.remove(&"d");
        assert_eq!((map.evict(1, |_| true), map.weight()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_makes_room_where_others_are_refused() {
        let minute = Duration::from_secs(60);
        let map = Expiring::new(3, 60 * minute, WhenFull::EvictUnused(minute)).within(10);
        for (key, weight) in [("a", 4), ("b", 4)] {
            map.insert_weighing(key, weight, weight).expect("there is room");
        }
        assert_eq!(map.insert_weighing("c", 3, 3), Err(Full), "it would weigh 11");
        tokio::time::advance(minute).await;
        assert_eq!(map.get(&"b"), Some(4));
        map.insert_weighing("c", 3, 3).expect("nobody used a");
        assert_eq!((map.get(&"a"), map.weight()), (None, 7));
        map.insert_weighing("d", 0, 0).expect("there is room");
        assert_eq!(map.insert_weighing("e", 0, 0), Err(Full), "there are three, all in use");
        assert_eq!(map.insert_weighing("f", 99, 99), Err(Full), "it has no room at all");
        assert_eq!(map.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_may_come_back_to_the_map() {
        #[derive(Debug, Clone)]
        struct Value(std::sync::Weak<Expiring<u8, Arc<Value>>>);
        impl Drop for Value {
            fn drop(&mut self) {
                let _ = self.0.upgrade().map(|map| map.len());
            }
        }
        let map = Arc::new(Expiring::new(2, Duration::from_secs(10), WhenFull::EvictOldest).within(10));
        let value = || Arc::new(Value(Arc::downgrade(&map)));
        for key in [0, 1, 2, 2] {
            map.insert_weighing(key, value(), 4).expect("it evicts");
        }
        map.insert_weighing(2, value(), 9).expect("it evicts");
        map.retain(|_| false);
        map.insert_weighing(1, value(), 4).expect("there is room");
        map.evict(4, |_| true);
        for end in
            [Expiring::sweep, |map: &Expiring<_, _>| _ = map.get(&1), |map: &Expiring<_, _>| _ = map.count(|_| true)]
        {
            map.insert(1, value()).expect("there is room");
            tokio::time::advance(Duration::from_secs(11)).await;
            end(&map);
            assert_eq!(map.len(), 0);
        }
    }
}
