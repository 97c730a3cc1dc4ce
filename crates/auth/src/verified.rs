use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use ring::hmac;

use crate::Error;
use crate::seal::random_bytes;

/// Remembers for a short time which (user, password hash, password) were right. Some clients send the password with
/// every call, and a full check takes 20 ms of CPU each time.
///
/// Holds no password: an entry is an HMAC under a key that lives only in this process. It covers the configured hash,
/// so that a changed password misses at once.
pub(crate) struct Verified {
    key: hmac::Key,
    keep: Duration,
    entries_max: usize,
    entries: Mutex<HashMap<[u8; 32], Duration>>,
}

impl Verified {
    pub(crate) fn new(keep: Duration, entries_max: usize) -> Result<Self, Error> {
        let key = random_bytes::<32>()?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &*key),
            keep,
            entries_max,
            entries: Mutex::new(HashMap::new()),
        })
    }

    /// What stands for these three in the table.
    pub(crate) fn fingerprint(&self, user: &str, hash: &str, password: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user, hash, password] {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }

    pub(crate) fn contains(&self, fingerprint: &[u8; 32], now: Duration) -> bool {
        self.entries.lock().get(fingerprint).is_some_and(|until| now < *until)
    }

    pub(crate) fn insert(&self, fingerprint: [u8; 32], now: Duration) {
        if self.keep.is_zero() || self.entries_max == 0 {
            return;
        }
        let mut entries = self.entries.lock();
        if entries.len() >= self.entries_max {
            entries.retain(|_, until| now < *until);
        }
        if entries.len() >= self.entries_max
            && let Some(oldest) = entries.iter().min_by_key(|(_, until)| **until).map(|(fingerprint, _)| *fingerprint)
        {
            entries.remove(&oldest);
        }
        entries.insert(fingerprint, now.saturating_add(self.keep));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn entries_expire_and_are_bounded() {
        let verified = Verified::new(SECOND * 60, 2).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|user| verified.fingerprint(user, "hash", "password"));
        verified.insert(a, SECOND);
        verified.insert(b, SECOND * 2);
        assert!(verified.contains(&a, SECOND * 60) && !verified.contains(&a, SECOND * 61));
        verified.insert(c, SECOND * 3);
        assert!(!verified.contains(&a, SECOND * 3), "the oldest made room");
        assert!(verified.contains(&b, SECOND * 3) && verified.contains(&c, SECOND * 3));
    }

    #[test]
    fn a_changed_hash_or_a_moved_border_misses() {
        let verified = Verified::new(SECOND, 2).unwrap();
        let fingerprint = verified.fingerprint("ab", "hash", "c");
        assert_eq!(fingerprint, verified.fingerprint("ab", "hash", "c"));
        assert_ne!(fingerprint, verified.fingerprint("ab", "hash2", "c"));
        assert_ne!(fingerprint, verified.fingerprint("a", "bhash", "c"));
    }
}
