//! A bounded map whose entries expire when nobody uses them.

use std::collections::HashMap;
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
    entries: Mutex<HashMap<K, Entry<V>>>,
    max: usize,
    ttl: Duration,
    when_full: WhenFull,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: Instant,
}

/// The map is full of entries that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl<K: Eq + Hash + Clone, V: Clone> Expiring<K, V> {
    pub(crate) fn new(max: usize, ttl: Duration, when_full: WhenFull) -> Self {
        Self { entries: Mutex::default(), max, ttl, when_full }
    }

    /// The live entry of `key`, which counts as a use.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(key)?;
        if now.duration_since(entry.used) >= self.ttl {
            entries.remove(key);
            return None;
        }
        entry.used = now;
        Some(entry.value.clone())
    }

    /// Puts `value` under `key`, over an older one.
    ///
    /// # Errors
    /// [`Full`], when the map refuses and all its entries are live.
    pub(crate) fn insert(&self, key: K, value: V) -> Result<(), Full> {
        let now = Instant::now();
        let mut entries = self.entries.lock();
        if entries.len() >= self.max && !entries.contains_key(&key) {
            // The sweep is linear, but runs only at the bound, and frees everything that expired since the last one.
            entries.retain(|_, entry| now.duration_since(entry.used) < self.ttl);
            if entries.len() >= self.max {
                if self.when_full == WhenFull::Refuse {
                    return Err(Full);
                }
                let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
                oldest.and_then(|key| entries.remove(&key));
            }
        }
        entries.insert(key, Entry { value, used: now });
        Ok(())
    }

    pub(crate) fn remove(&self, key: &K) -> Option<V> {
        self.entries.lock().remove(key).map(|entry| entry.value)
    }

    /// How many live entries `matches`.
    pub(crate) fn count(&self, matches: impl Fn(&V) -> bool) -> usize {
        let now = Instant::now();
        let entries = self.entries.lock();
        let live = entries.values().filter(|entry| now.duration_since(entry.used) < self.ttl);
        live.filter(|entry| matches(&entry.value)).count()
    }

    pub(crate) fn retain(&self, keep: impl Fn(&V) -> bool) {
        self.entries.lock().retain(|_, entry| keep(&entry.value));
    }

    /// Drops what expired. Called now and then, so that an idle server gives memory back.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.entries.lock().retain(|_, entry| now.duration_since(entry.used) < self.ttl);
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
