//! A cache with a budget in bytes that drops what was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use parking_lot::Mutex;

/// Least recently used entries go when the sum of their weights passes `budget`.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    budget: usize,
    inner: Mutex<Inner<K, V>>,
}

#[derive(Debug)]
struct Inner<K, V> {
    entries: HashMap<K, Slot<V>>,
    /// Keys by the tick of their last use.
    order: BTreeMap<u64, K>,
    tick: u64,
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
    pub(crate) fn new(budget: usize) -> Self {
        let inner = Inner { entries: HashMap::new(), order: BTreeMap::new(), tick: 0, used: 0 };
        Self { budget, inner: Mutex::new(inner) }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.tick += 1;
        let slot = inner.entries.get_mut(key)?;
        inner.order.remove(&slot.tick);
        slot.tick = inner.tick;
        inner.order.insert(slot.tick, key.clone());
        Some(slot.value.clone())
    }

    /// Keeps `value`, which weighs `weight` bytes, unless it alone is heavier than the budget.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) {
        if weight > self.budget {
            return;
        }
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.tick += 1;
        let tick = inner.tick;
        if let Some(old) = inner.entries.insert(key.clone(), Slot { value, weight, tick }) {
            inner.order.remove(&old.tick);
            inner.used -= old.weight;
        }
        inner.order.insert(tick, key);
        inner.used += weight;
        while inner.used > self.budget {
            let Some((_, oldest)) = inner.order.pop_first() else { break };
            if let Some(slot) = inner.entries.remove(&oldest) {
                inner.used -= slot.weight;
            }
        }
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
        assert_eq!(cache.inner.lock().used, 10);
    }
}
