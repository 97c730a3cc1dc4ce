//! A cache with a budget in bytes that drops what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Least recently used entries go when the sum of their weights, and of what is reserved, passes the budget.
#[derive(Debug)]
pub struct Cache<K, V> {
    budget: usize,
    inner: Mutex<Inner<K, V>>,
    lookups: Lookups,
}

/// How often what was looked for was there, and was not.
#[derive(Debug, Default)]
pub struct Lookups {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Lookups {
    /// Counts one.
    pub fn count(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was there, and how often it was not.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Inner<K, V> {
    entries: HashMap<K, Slot<V>>,
    /// Keys by the tick of their last use.
    order: BTreeMap<u64, K>,
    tick: u64,
    /// Weights of the entries, and what is reserved for others to come.
    used: usize,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    weight: usize,
    tick: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// An empty cache of `budget` bytes.
    pub fn new(budget: usize) -> Self {
        let inner = Inner { entries: HashMap::new(), order: BTreeMap::new(), tick: 0, used: 0 };
        Self { budget, inner: Mutex::new(inner), lookups: Lookups::default() }
    }

    /// The value of `key`, which counts as a use.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.tick += 1;
        let slot = inner.entries.get_mut(key);
        self.lookups.count(slot.is_some());
        let slot = slot?;
        inner.order.remove(&slot.tick);
        slot.tick = inner.tick;
        inner.order.insert(slot.tick, key.clone());
        Some(slot.value.clone())
    }

    /// Keeps `value`, which weighs `weight` bytes, unless it alone is heavier than the budget.
    pub fn insert(&self, key: K, value: V, weight: usize) {
        if weight > self.budget {
            return;
        }
        let mut inner = self.inner.lock();
        let old = inner.put(key, value, weight);
        let dropped = inner.shrink(self.budget);
        drop(inner);
        // What a value holds may take long to drop.
        drop((old, dropped));
    }

    /// Makes room for `bytes` of an entry that is still being made. `false` when there is none: others are being
    /// made too. They count as used until [`Self::release`].
    pub fn reserve(&self, bytes: usize) -> bool {
        let mut inner = self.inner.lock();
        let dropped = inner.shrink(self.budget.saturating_sub(bytes));
        let fits = inner.used.saturating_add(bytes) <= self.budget;
        if fits {
            inner.used += bytes;
        }
        drop(inner);
        drop(dropped);
        fits
    }

    /// Gives back what [`Self::reserve`] took.
    pub fn release(&self, bytes: usize) {
        self.inner.lock().used -= bytes;
    }

    /// Drops entries, the one used longest ago first, until `bytes` are free that were not. Returns how many that are.
    pub fn evict(&self, bytes: usize) -> usize {
        let mut inner = self.inner.lock();
        let before = inner.used;
        let dropped = inner.shrink(before.saturating_sub(bytes));
        let freed = before - inner.used;
        drop(inner);
        drop(dropped);
        freed
    }

    /// The bytes that it may hold.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// How often what was asked for was there, and how often it was not.
    pub fn asked(&self) -> (u64, u64) {
        self.lookups.counts()
    }

    /// How many entries there are, and how many bytes they and what is reserved take.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.entries.len(), inner.used)
    }
}

impl<K: Hash + Eq + Clone, V> Inner<K, V> {
    /// Puts in `value`; returns the one it replaces.
    fn put(&mut self, key: K, value: V, weight: usize) -> Option<Slot<V>> {
        self.tick += 1;
        let tick = self.tick;
        let old = self.entries.insert(key.clone(), Slot { value, weight, tick });
        if let Some(old) = &old {
            self.order.remove(&old.tick);
            self.used -= old.weight;
        }
        self.order.insert(tick, key);
        self.used += weight;
        old
    }

    /// Takes out entries until no more than `budget` is used.
    fn shrink(&mut self, budget: usize) -> Vec<(K, Slot<V>)> {
        let mut out = Vec::new();
        while self.used > budget {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some((key, slot)) = self.entries.remove_entry(&oldest) {
                self.used -= slot.weight;
                out.push((key, slot));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_and_the_oldest_goes_first() {
        let cache = Cache::new(10);
        cache.insert(1, 'a', 4);
        cache.insert(2, 'b', 4);
        assert_eq!(cache.get(&1), Some('a'));
        cache.insert(3, 'c', 4);
        assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some('a'), None, Some('c')));
        cache.insert(4, 'd', 11);
        assert_eq!(cache.get(&4), None, "heavier than the whole budget");
        cache.insert(3, 'e', 10);
        assert_eq!((cache.get(&1), cache.get(&3)), (None, Some('e')));
        assert_eq!((cache.size(), cache.asked()), ((1, 10), (4, 3)));
    }

    #[test]
    fn what_is_reserved_takes_the_room_of_entries_and_not_of_others_reserved() {
        let cache = Cache::new(10);
        cache.insert(1, 'a', 4);
        cache.insert(2, 'b', 4);
        assert!(cache.reserve(6));
        assert_eq!((cache.get(&1), cache.get(&2), cache.size()), (None, Some('b'), (1, 10)));
        assert!(!cache.reserve(7), "six are reserved");
        assert_eq!(cache.size(), (0, 6), "and there was nothing more to drop");
        cache.release(6);
        cache.insert(3, 'c', 10);
        assert_eq!((cache.evict(1), cache.evict(1), cache.size()), (10, 0, (0, 0)));
    }
}
