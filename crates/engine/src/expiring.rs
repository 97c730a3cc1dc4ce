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
    /// The entry that was used longest ago makes room.
    EvictOldest,
}

/// At most `max` entries, each living for `ttl` after its last use. Values are handed out by clone.
#[derive(Debug)]
pub(crate) struct Expiring<K, V> {
    entries: Mutex<Entries<K, V>>,
    max: usize,
    ttl: Duration,
    when_full: WhenFull,
}

#[derive(Debug)]
struct Entries<K, V> {
    by_key: HashMap<K, Entry<V>>,
    /// Keys by the turn of their last use: the first is the one that was used longest ago.
    order: BTreeMap<u64, K>,
    turn: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: Instant,
    turn: u64,
}

/// The map is full of entries that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl<K: Eq + Hash + Clone, V> Entries<K, V> {
    fn put(&mut self, key: K, value: V) {
        self.remove(&key);
        self.turn += 1;
        self.order.insert(self.turn, key.clone());
        self.by_key.insert(key, Entry { value, used: Instant::now(), turn: self.turn });
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.by_key.remove(key)?;
        self.order.remove(&entry.turn);
        Some(entry.value)
    }

    fn remove_oldest(&mut self) {
        if let Some((_, oldest)) = self.order.pop_first() {
            self.by_key.remove(&oldest);
        }
    }

    /// Drops what was not used for `ttl`.
    fn expire(&mut self, ttl: Duration) {
        let now = Instant::now();
        while let Some(oldest) = self.order.values().next()
            && self.by_key.get(oldest).is_none_or(|entry| now.duration_since(entry.used) >= ttl)
        {
            self.remove_oldest();
        }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Expiring<K, V> {
    pub(crate) fn new(max: usize, ttl: Duration, when_full: WhenFull) -> Self {
        let entries = Entries { by_key: HashMap::new(), order: BTreeMap::new(), turn: 0 };
        Self { entries: Mutex::new(entries), max, ttl, when_full }
    }

    /// The live entry of `key`, which counts as a use.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut entries = self.entries.lock();
        entries.expire(self.ttl);
        let value = entries.by_key.get(key)?.value.clone();
        entries.put(key.clone(), value.clone());
        Some(value)
    }

    /// Puts `value` under `key`, over an older one.
    ///
    /// # Errors
    /// [`Full`], when the map refuses and all its entries are live.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<(), Full> {
        let mut entries = self.entries.lock();
        if entries.by_key.len() >= self.max && !entries.by_key.contains_key(&key) {
            entries.expire(self.ttl);
            if entries.by_key.len() >= self.max {
                if self.when_full == WhenFull::Refuse {
                    return Err(Full);
                }
                entries.remove_oldest();
            }
        }
        entries.put(key, value);
        Ok(())
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.entries.lock().remove(key)
    }

    /// How many entries there are, those included that have expired and were not dropped yet.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().by_key.len()
    }

    /// How many live entries `matches`.
    pub(crate) fn count(&self, matches: impl Fn(&V) -> bool) -> usize {
        let mut entries = self.entries.lock();
        entries.expire(self.ttl);
        entries.by_key.values().filter(|entry| matches(&entry.value)).count()
    }

    pub(crate) fn retain(&self, keep: impl Fn(&V) -> bool) {
        let Entries { by_key, order, .. } = &mut *self.entries.lock();
        by_key.retain(|_, entry| keep(&entry.value) || order.remove(&entry.turn).is_none());
    }

    /// Drops what expired. Called now and then, so that an idle server gives memory back.
    pub(crate) fn sweep(&self) {
        self.entries.lock().expire(self.ttl);
    }
}

#[cfg(test)]
mod tests {
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
}
