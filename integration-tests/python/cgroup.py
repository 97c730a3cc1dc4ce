"""A cgroup with a memory limit, version 1 or 2, whichever the machine has.

The kernel's own figures decide: whether it killed (`oom_kill`), and how often it had to make room first (`hits`). A group needs
root; without it `Cgroup.make` returns None, and a run says that only the resident size was held to its bound. Where root could have
had one (`expected`), that is a fault of the run.
"""

import contextlib
import itertools
import os
import pathlib
import time

_numbers = itertools.count()
# What the kernel says of this process.
PROC = pathlib.Path("/proc/self")


def _mounts():
    """(type, mount point, options) of every mount."""
    for line in (PROC / "mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        yield kind, pathlib.Path(point), options.split(",")


def _own(controller):
    """This process's group below the mount: of a version 1 controller, or of version 2 for the empty name."""
    for line in (PROC / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return ""


def _has_memory(kind, point, options):
    """Whether a mount has the memory controller, which is bound to one hierarchy at a time."""
    if kind == "cgroup2":
        return "memory" in (point / "cgroup.controllers").read_text().split()
    return kind == "cgroup" and "memory" in options


def expected():
    """Whether this process should be able to make a group: it is root's, and the memory controller is there to be written."""
    return os.geteuid() == 0 and any("rw" in options and _has_memory(kind, point, options) for kind, point, options in _mounts())


class Cgroup:
    """A group below this process's own, so that the limits around the test still hold. `remove` it when its processes have ended."""

    version = 0

    def __init__(self, parent, limit):
        self.limit = limit
        self.path = parent / f"updraft-torture-{os.getpid()}-{next(_numbers)}"
        self.path.mkdir()
        try:
            self._set_limit()
        except OSError:
            self.path.rmdir()
            raise

    @staticmethod
    def make(limit):
        """A group that may use `limit` bytes, and why there is none: (group, "") or (None, reason)."""
        reasons = []
        for kind in (V1, V2):
            try:
                parent = kind.parent()
                if parent is not None:
                    return kind(parent, limit), ""
            except OSError as error:
                reasons.append(f"v{kind.version}: {error}")
        return None, "; ".join(reasons) or "no memory controller is mounted"

    def prefix(self):
        """The command that enters the group, and then is the command given after it."""
        return ["sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh"]

    def remove(self):
        # A process that has just ended can hold its group for a moment.
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)

    def _read(self, name):
        return (self.path / name).read_text()

    def _counts(self, name):
        return {key: int(value) for key, value in (line.split() for line in self._read(name).splitlines())}


class V1(Cgroup):
    version = 1

    @staticmethod
    def parent():
        for kind, point, options in _mounts():
            if kind == "cgroup" and _has_memory(kind, point, options):
                own = point / _own("memory")
                return own if own.is_dir() else point
        return None

    def _set_limit(self):
        (self.path / "memory.limit_in_bytes").write_text(str(self.limit))
        # No way out into swap. The file is absent where swap is not accounted.
        with contextlib.suppress(FileNotFoundError):
            (self.path / "memory.memsw.limit_in_bytes").write_text(str(self.limit))

    def figures(self):
        """`peak` counts page cache, which the kernel gives up before it kills."""
        return {
            "version": 1,
            "limit": self.limit,
            "oom_kills": self._counts("memory.oom_control").get("oom_kill", 0),
            "hits": int(self._read("memory.failcnt")),
            "peak": int(self._read("memory.max_usage_in_bytes")),
        }


class V2(Cgroup):
    version = 2

    @staticmethod
    def parent():
        """The nearest group that may hand the memory controller down: below the root, only one without processes of its own may."""
        for kind, point, options in _mounts():
            if kind != "cgroup2" or not _has_memory(kind, point, options):
                continue
            own = point / _own("")
            for group in (own, *own.parents):
                with contextlib.suppress(OSError):
                    (group / "cgroup.subtree_control").write_text("+memory")
                    return group
                if group == point:
                    break
            raise PermissionError("no group hands the memory controller down")
        return None

    def _set_limit(self):
        (self.path / "memory.max").write_text(str(self.limit))
        with contextlib.suppress(FileNotFoundError):
            (self.path / "memory.swap.max").write_text("0")

    def figures(self):
        events = self._counts("memory.events")
        peak = self.path / "memory.peak"
        return {
            "version": 2,
            "limit": self.limit,
            "oom_kills": events["oom_kill"],
            "hits": events["max"],
            # The kernel has it since 5.19.
            "peak": int(peak.read_text()) if peak.exists() else None,
        }
