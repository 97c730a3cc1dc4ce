//! Where the limit comes from when the config names none.

use bytesize::ByteSize;

use super::cgroup::Cgroup;

/// Of a group's limit, what is left to the process for what is not queries: code, connections, caches of metadata.
const FIXED: u64 = 256 << 20;
/// Resident memory stays within this much of the budget: pages that are free but not yet given back, and what
/// was allocated since it was last measured.
const SLACK: f64 = 1.15;
/// Of the host's memory, what queries may have: others live there too.
const SHARE_OF_HOST: f64 = 0.65;
/// Below this a share is given rather than what the formula leaves.
const SHARE_OF_SMALL: f64 = 0.4;

/// The limit to use when the config names none, in bytes, and where it comes from.
pub(crate) fn default_limit() -> (u64, String) {
    derive(Cgroup::of_this_process().map(|group| group.limit), host_memory())
}

/// Bytes of memory that the host has; `None` where that is not told.
pub(crate) fn host_memory() -> Option<u64> {
    std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text))
}

fn derive(cgroup: Option<u64>, host: Option<u64>) -> (u64, String) {
    match (cgroup, host) {
        (Some(cgroup), host) if host.is_none_or(|host| cgroup < host) => {
            let formula = (cgroup.saturating_sub(FIXED) as f64 / SLACK) as u64;
            let limit = formula.max((cgroup as f64 * SHARE_OF_SMALL) as u64);
            (limit, format!("what fits the cgroup's {}", ByteSize(cgroup)))
        }
        (_, Some(host)) => (
            (host as f64 * SHARE_OF_HOST) as u64,
            format!("{:.0} % of the host's {}", SHARE_OF_HOST * 100.0, ByteSize(host)),
        ),
        (_, None) => (ByteSize::gib(1).0, "assumed: neither cgroup nor host tells".to_owned()),
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_leaves_room_for_what_is_not_counted() {
        let gib = 1 << 30;
        let (limit, source) = derive(Some(4 * gib), Some(64 * gib));
        assert!((limit as f64 * SLACK) as u64 + FIXED <= 4 * gib && limit > 3 * gib, "{limit}");
        assert!(source.contains("cgroup's 4.0 GiB"), "{source}");
        let (limit, source) = derive(None, Some(10 * gib));
        assert_eq!((limit, source.as_str()), (6_979_321_856, "65 % of the host's 10.0 GiB"));
        assert_eq!(derive(Some(64 * gib), Some(10 * gib)).0, limit, "a cgroup above the host's memory bounds nothing");
        assert!(derive(Some(256 << 20), None).0 >= 100 << 20, "a small group has some too");
        assert_eq!(derive(None, None).0, gib);
    }

    #[test]
    fn the_hosts_memory_is_found() {
        assert_eq!(mem_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2048 * 1024));
        assert_eq!(mem_total("nothing"), None);
        assert!(default_limit().0 > 0);
    }
}
