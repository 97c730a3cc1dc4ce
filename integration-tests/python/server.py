"""The server under torture or measurement: in its cgroup, watched, with its query log at hand."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

from pyarrow import flight

import harness
from cgroup import Cgroup
from lab import MIB

SAMPLE_SECONDS = 0.02
ADMIN_SECONDS = 300
NO_CACHE = "hot.memory_limit=0B"


@dataclasses.dataclass(frozen=True)
class Setup:
    """How a server is started. `budget` is `engine.memory_limit` in bytes."""

    data: pathlib.Path
    pool: str
    budget: int
    partitions: str = "auto"
    settings: tuple[str, ...] = ()
    in_cgroup: bool = True

    def bound(self, share=1.15, more=256):
        """`share` x budget + `more` MiB: the form of every bound on this server."""
        return int(share * self.budget) + more * MIB


class Watch(threading.Thread):
    """Samples what the kernel says of a process's memory. The peaks are the kernel's own, so no moment is missed."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.status = pathlib.Path(f"/proc/{pid}/status")
        self.pid, self.peak, self.anonymous_peak, self.now, self.anonymous = pid, 0, 0, 0, 0
        self.stopped = threading.Event()
        self.sample()
        self.start()

    def run(self):
        while not self.stopped.wait(SAMPLE_SECONDS):
            if not self.sample():
                return

    def sample(self):
        try:
            lines = dict(line.split(":", 1) for line in self.status.read_text().splitlines())
            self.now, self.anonymous, peak = (int(lines[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon", "VmHWM"))
        except (OSError, KeyError, ValueError):  # The process is gone, or on its way.
            return False
        self.peak, self.anonymous_peak = max(self.peak, peak), max(self.anonymous_peak, self.anonymous)
        return True

    def settled_peak(self):
        self.sample()
        return self.peak

    def reset(self):
        """Forgets the peak up to now; returns what is resident."""
        with contextlib.suppress(OSError):
            pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.peak = self.anonymous_peak = 0
        self.sample()
        return self.now


class Server(harness.Server):
    """`setup`, running. `cgroup` is None where the machine gives none; `no_cgroup` then says why."""

    def __init__(self, setup):
        self.setup = setup
        self.cgroup, self.no_cgroup = Cgroup.make(setup.bound()) if setup.in_cgroup else (None, "not wanted here")
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        self.spill = harness.WORK / f"{name}.spill"
        self.spill.mkdir(parents=True)
        settings = {
            "engine.memory_limit": setup.budget,
            "engine.memory_pool": setup.pool,
            "engine.target_partitions": setup.partitions,
            "engine.spill_directories": json.dumps([str(self.spill)]),
            "server.log_format": "json",
        }
        # DataFusion's own pools cannot take memory back from the cache.
        without = () if setup.pool == "fair" else (NO_CACHE,)
        try:
            super().__init__(
                setup.data,
                settings=[*(f"{key}={value}" for key, value in settings.items()), *without, *setup.settings],
                log=harness.WORK / f"{name}.log",
                prefix=self.cgroup.prefix() if self.cgroup else (),
            )
        except BaseException:
            self._tidy()
            raise
        self.watch = Watch(self.process.pid)
        self._read_to, self._admin = 0, None

    def alive(self):
        return self.process.poll() is None

    def died(self):
        """Whether it is gone. Asked after a broken connection, so the kernel gets a moment to clear the process away."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(1)
        return not self.alive()

    @contextlib.contextmanager
    def client(self):
        with flight.FlightClient(self.uri) as client:
            yield client, self.died

    def end(self):
        """Ends the server, whatever its state. Returns what it leaves: exit code, errors, peaks, the cgroup's figures."""
        died = self.process.poll()
        self.watch.stopped.set()
        self.watch.sample()
        self.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            code = "had to be killed"
        figures = {
            "exit": code,
            "errors": self._errors(),
            "died": died is not None,
            "rss_peak": self.watch.peak,
            "rss_anonymous_peak": self.watch.anonymous_peak,
            "cgroup": self.cgroup.figures() if self.cgroup else None,
            "no_cgroup": self.no_cgroup,
        }
        self._tidy()
        if died is None and code == 0 and not figures["errors"]:
            self.log.unlink()
        return figures

    def _errors(self):
        """What it logged as an error: faults of its own, which no statement should bring about."""
        lines, _ = self.logged()
        return [line.get("fields", line) for line in lines if line.get("level") == "ERROR"]

    def _tidy(self):
        if self.cgroup:
            self.cgroup.remove()
        shutil.rmtree(self.spill, ignore_errors=True)

    def ended(self):
        """The query log's lines since the last call of this: one dict for each query that ended."""
        lines, self._read_to = self.logged(self._read_to)
        return [line.get("fields", line) | {"at": line["timestamp"]} for line in lines if line.get("target") == "updraft::query"]

    def last_ended(self):
        """What the log says of the query that ended last, as far as the server reports it. The line may be a moment behind the answer."""
        end, lines = time.monotonic() + 1, []
        while not lines and time.monotonic() < end and self.alive():
            lines = self.ended()
            time.sleep(0.01)
        wanted = ("peak_bytes", "spilled_bytes", "spill_files", "partitions", "attempts", "queue_ms")
        return {f"log_{name}": lines[-1][name] for name in wanted if lines and name in lines[-1]}

    def admin(self):
        """A connection to the admin port."""
        lines, _ = self.logged()
        (listening,) = (line for line in lines if "admin" in line.get("fields", line))
        return http.client.HTTPConnection(listening.get("fields", listening)["admin"].strip('"'), timeout=ADMIN_SECONDS)

    def status(self):
        """What the server says of itself now: `/status` of its admin port."""
        self._admin = self._admin or self.admin()
        self._admin.request("GET", "/status")
        return json.loads(self._admin.getresponse().read())

    def settled(self):
        """The bytes that are reserved while nothing runs."""
        while (status := self.status())["running"]:
            time.sleep(0.01)
        return status["memory_reserved_bytes"]

    def busy(self, seconds):
        """The share of one core it uses over so long."""
        before = sum(self.usage.cpu_times()[:2])
        time.sleep(seconds)
        return (sum(self.usage.cpu_times()[:2]) - before) / seconds


class Died(Exception):
    """The server ended by itself, or not as it should. `left` is what it left."""

    def __init__(self, server):
        super().__init__(f"the server died: {server.left}; its log: {server.log}")
        self.left = server.left


@contextlib.contextmanager
def serving(setup, may_die=False):
    """A server for a block; what it leaves is in its `left` then. Raises Died unless it lives to the end of the block or `may_die`."""
    server = Server(setup)
    try:
        yield server
    except Exception as error:
        server.left = server.end()
        raise (Died(server) if server.left["died"] else error) from error
    except BaseException:
        server.end()
        raise
    server.left = server.end()
    if not may_die and (server.left["died"] or server.left["exit"] != 0):
        raise Died(server)


def smallest_budget(pool):
    """The least `engine.memory_limit` that the server starts with, to 1 MiB."""

    def starts(mib):
        return harness.run("config", "check", "--set", f"engine.memory_limit={mib}MiB", "--set", f"engine.memory_pool={pool}").returncode == 0

    low, high = 0, 1
    while not starts(high):
        low, high = high, high * 2
        if high > 1 << 20:
            raise SystemExit("the server starts with no budget at all; try `updraft config check`")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if starts(middle) else (middle, high)
    return high * MIB
