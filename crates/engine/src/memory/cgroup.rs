//! What the control groups of Linux allow this process, and what it uses of it. Both versions.
//!
//! A process is in a group, the group in another, and each may have a limit; the least one counts. In a
//! container the group often looks like the root of the tree; elsewhere `/proc/self/cgroup` says where it is.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit of this size or more means none: version 1 says "no limit" with the greatest multiple of a page.
const UNLIMITED: u64 = 1 << 60;

/// The control group that bounds the memory of this process most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
    /// Bytes.
    pub(crate) limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit(self, folder: &Path) -> Option<u64> {
        let file = match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        };
        // Version 2 says "max" for no limit, which is no number.
        number(&folder.join(file)).filter(|limit| *limit < UNLIMITED)
    }
}

impl Cgroup {
    /// The group of this process; `None` when nothing bounds its memory.
    pub(crate) fn of_this_process() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::find(Path::new("/sys/fs/cgroup"), &own)
    }

    /// The tightest group at or above the one that `own`, in the form of `/proc/self/cgroup`, names in the tree at `root`.
    fn find(root: &Path, own: &str) -> Option<Self> {
        let mut groups = Vec::new();
        for line in own.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            let (version, tree) = if controllers.split(',').any(|one| one == "memory") {
                (Version::One, root.join("memory"))
            } else if controllers.is_empty() {
                (Version::Two, root.to_owned())
            } else {
                continue;
            };
            // From the process's own group up to the root of what is visible.
            let own = tree.join(path.trim_start_matches('/'));
            groups.extend(own.ancestors().take_while(|up| up.starts_with(&tree)).map(|up| (version, up.to_owned())));
        }
        let bounded = groups.into_iter().filter_map(|(version, folder)| {
            let limit = version.limit(&folder)?;
            Some(Self { folder, version, limit })
        });
        bounded.min_by_key(|group| group.limit)
    }

    /// Bytes the group uses, without what the kernel can drop when it needs memory: files it has cached.
    pub(crate) fn used(&self) -> Option<u64> {
        let (usage, cached) = match self.version {
            Version::One => ("memory.usage_in_bytes", ["total_inactive_file", "total_active_file"]),
            Version::Two => ("memory.current", ["inactive_file", "active_file"]),
        };
        let usage = number(&self.folder.join(usage))?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).ok()?;
        let cached: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| cached.contains(name))
            .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
            .sum();
        Some(usage.saturating_sub(cached))
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    #[test]
    fn the_tightest_group_counts_in_both_versions() {
        let v1 = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/pod/memory.limit_in_bytes", "1000\n"),
            ("memory/pod/app/memory.limit_in_bytes", "3000\n"),
            ("memory/pod/memory.usage_in_bytes", "900\n"),
            ("memory/pod/memory.stat", "total_inactive_file 300\ntotal_active_file 100\nrss 500\n"),
        ];
        let v2 = [
            ("pod/memory.max", "1000\n"),
            ("pod/app/memory.max", "max\n"),
            ("pod/memory.current", "900\n"),
            ("pod/memory.stat", "anon 500\ninactive_file 300\nactive_file 100\n"),
        ];
        for (files, own) in [(&v1[..], "4:memory:/pod/app\n3:cpu,cpuacct:/x\n"), (&v2[..], "0::/pod/app\n")] {
            let root = tree(files);
            let group = Cgroup::find(root.path(), own).expect("it is bounded");
            assert_eq!((group.limit, group.used()), (1000, Some(500)), "{own}");
        }
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        // The path is the host's, and not there inside.
        let v2 = tree(&[("memory.max", "2000")]);
        assert_eq!(Cgroup::find(v2.path(), "0::/host/path\n").map(|group| group.limit), Some(2000));
        let v1 = tree(&[("memory/memory.limit_in_bytes", "2000")]);
        assert_eq!(Cgroup::find(v1.path(), "4:memory:/docker/abc\n").map(|group| group.limit), Some(2000));
    }

    #[test]
    fn no_limit_is_none() {
        let root = tree(&[("memory/memory.limit_in_bytes", "9223372036854771712"), ("memory.max", "max")]);
        for own in ["4:memory:/\n", "0::/\n", "", "rubbish\n"] {
            assert_eq!(Cgroup::find(root.path(), own), None, "{own}");
        }
    }
}
