use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::LoginAttempts;

/// Counts failed logins per (user, address) and per address, and makes each one after the first few wait longer than
/// the one before. Bounded: at `table_max` entries the stalest one goes.
///
/// Per user alone would let anybody lock out anybody; per address alone would let one guess slowly on many users, which
/// the second, higher limit per address slows down.
#[derive(Debug)]
pub(crate) struct Throttle {
    limits: LoginAttempts,
    failures: Mutex<HashMap<Key, Failures>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// `None` counts all users of an address.
    user: Option<String>,
    /// IPv6 addresses count by their /64: a client owns that many.
    address: IpAddr,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Duration,
    blocked_until: Duration,
}

/// Longest user name that is told apart, in bytes; the rest is ignored so that names cost bounded memory.
const USER_BYTES_MAX: usize = 128;
/// An address may fail this many times as often as one user from it before it waits.
const ADDRESS_FACTOR: u32 = 10;

impl Throttle {
    pub(crate) fn new(limits: LoginAttempts) -> Self {
        Self { limits, failures: Mutex::new(HashMap::new()) }
    }

    /// `Err(how long to wait)` when this login may not be tried now. `now` is steady time.
    pub(crate) fn check(&self, user: &str, address: IpAddr, now: Duration) -> Result<(), Duration> {
        let failures = self.failures.lock();
        let wait = keys(user, address)
            .iter()
            .filter_map(|key| failures.get(key)?.blocked_until.checked_sub(now))
            .max()
            .unwrap_or_default();
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    pub(crate) fn failed(&self, user: &str, address: IpAddr, now: Duration) {
        let mut failures = self.failures.lock();
        for key in keys(user, address) {
            if !failures.contains_key(&key) {
                self.make_room(&mut failures, now);
            }
            let free = self.free(&key);
            let entry = failures.entry(key).or_insert(Failures { count: 0, last: now, blocked_until: now });
            if now.saturating_sub(entry.last) > self.limits.forget_after {
                entry.count = 0;
            }
            entry.count = entry.count.saturating_add(1);
            entry.last = now;
            if let Some(excess) = entry.count.checked_sub(free.saturating_add(1)) {
                let factor = 1u32.checked_shl(excess).unwrap_or(u32::MAX);
                let wait = self.limits.delay.saturating_mul(factor).min(self.limits.delay_max);
                entry.blocked_until = now.saturating_add(wait);
            }
        }
    }

    /// A login worked: the user's own failures from there are forgiven, the address's are not.
    pub(crate) fn succeeded(&self, user: &str, address: IpAddr) {
        let [user, _] = keys(user, address);
        self.failures.lock().remove(&user);
    }

    fn free(&self, key: &Key) -> u32 {
        match key.user {
            Some(_) => self.limits.free,
            None => self.limits.free.saturating_mul(ADDRESS_FACTOR),
        }
    }

    fn make_room(&self, failures: &mut HashMap<Key, Failures>, now: Duration) {
        if failures.len() < self.limits.table_max {
            return;
        }
        failures.retain(|_, f| now.saturating_sub(f.last) <= self.limits.forget_after);
        // Entries of addresses outlive entries of users: those come by the thousand in an attack, and the count per
        // address is what slows it down.
        while failures.len() >= self.limits.table_max.max(1) {
            let stalest =
                failures.iter().min_by_key(|(key, f)| (key.user.is_none(), f.last)).map(|(key, _)| key.clone());
            match stalest {
                Some(key) => failures.remove(&key),
                None => return,
            };
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.failures.lock().len()
    }
}

fn keys(user: &str, address: IpAddr) -> [Key; 2] {
    let address = match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    };
    let end = (0..=user.len().min(USER_BYTES_MAX)).rev().find(|i| user.is_char_boundary(*i)).unwrap_or(0);
    [Key { user: Some(user[..end].to_owned()), address }, Key { user: None, address }]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> LoginAttempts {
        LoginAttempts { free: 2, delay: SECOND, delay_max: SECOND * 10, table_max: 8, ..LoginAttempts::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_are_forgotten() {
        let throttle = Throttle::new(limits());
        let mut now = SECOND;
        let mut waits = Vec::new();
        for _ in 0..8 {
            throttle.failed("alice", ip("10.0.0.1"), now);
            let wait = throttle.check("alice", ip("10.0.0.1"), now).err().unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(throttle.check("alice", ip("10.0.0.1"), now), Ok(()), "the wait is over at its end");
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 10, 10]);
        now += limits().forget_after + SECOND;
        throttle.failed("alice", ip("10.0.0.1"), now);
        assert_eq!(throttle.check("alice", ip("10.0.0.1"), now), Ok(()));
    }

    #[test]
    fn others_are_not_locked_out_and_success_forgives() {
        let throttle = Throttle::new(limits());
        for _ in 0..5 {
            throttle.failed("alice", ip("10.0.0.1"), SECOND);
        }
        assert!(throttle.check("alice", ip("10.0.0.1"), SECOND).is_err());
        assert!(throttle.check("alice", ip("::ffff:10.0.0.1"), SECOND).is_err(), "the same address, mapped");
        assert!(throttle.check("alice", ip("10.0.0.2"), SECOND).is_ok());
        assert!(throttle.check("bob", ip("10.0.0.1"), SECOND).is_ok());
        throttle.succeeded("alice", ip("10.0.0.1"));
        assert!(throttle.check("alice", ip("10.0.0.1"), SECOND).is_ok());
    }

    #[test]
    fn one_address_that_tries_many_users_waits_too() {
        let throttle = Throttle::new(limits());
        for n in 0..=limits().free * ADDRESS_FACTOR {
            throttle.failed(&format!("user{n}"), ip(&format!("2001:db8::{n:x}")), SECOND);
        }
        assert!(throttle.check("new", ip("2001:db8::ffff"), SECOND).is_err());
        assert!(throttle.check("new", ip("2001:db8:0:1::1"), SECOND).is_ok(), "another /64");
        assert!(throttle.len() <= limits().table_max);
    }

    #[test]
    fn the_table_is_bounded_and_long_names_are_cut() {
        let throttle = Throttle::new(limits());
        for n in 0..1000u32 {
            throttle.failed(&"ä".repeat(1000), IpAddr::from(n.to_be_bytes()), SECOND * n);
        }
        assert!(throttle.len() <= limits().table_max);
    }
}
