"""Starts `updraft` as its users do: the built binary, a free port on loopback, data in a folder of its own.

The server under test is the program named by UPDRAFT_BIN (default target/debug/updraft). A server that does not end with
exit code 0 at SIGTERM fails the test that owns it.
"""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time

import psutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("UPDRAFT_BIN", ROOT / "target/debug/updraft"))
WORK = pathlib.Path(os.environ.get("UPDRAFT_CLIENTS_DIR", ROOT / "target/clients"))
READY_SECONDS = 60
STOP_SECONDS = 30

USER, PASSWORD = "ada", "correct horse battery staple"


class Server:
    """One running `updraft serve`. `uri` is what it said it listens on; `log` is the path of its stderr.

    `prefix` is a command that becomes the server: what it sets up before its `exec` holds from the server's first instruction.
    """

    def __init__(self, data=None, *, settings=(), config=None, env=None, log=None, listen="127.0.0.1:0", prefix=()):
        WORK.mkdir(parents=True, exist_ok=True)
        self.log = pathlib.Path(log or WORK / f"server-{os.getpid()}-{time.monotonic_ns()}.log")
        command = [*prefix, str(BIN), "serve", "--listen", listen]
        if data is not None:
            command += ["--data", str(data)]
        if config is not None:
            command += ["--config", str(config)]
        for setting in settings:
            command += ["--set", setting]
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **(env or {})}
            )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.uri = self._wait_ready(command)
        self.host, _, port = self.uri.split("://")[1].rpartition(":")
        self.port = int(port)
        self.usage = psutil.Process(self.process.pid)

    def _read(self):
        # Read to the end: a full pipe would stop the server.
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def _wait_ready(self, command):
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                self.process.kill()
                raise AssertionError(f"not ready after {READY_SECONDS} s: {' '.join(command)}\n{self.log_text()}") from None
            if line is None:
                raise AssertionError(f"ended with {self.process.wait()} before it was ready: {' '.join(command)}\n{self.log_text()}")
            if line.startswith("updraft listening on "):
                return line.removeprefix("updraft listening on ")

    def log_text(self):
        return self.log.read_text(errors="replace")[-4000:]

    def logged(self, since=0):
        """The log from byte `since` on, as dicts, where `server.log_format` is `json`, and where its last whole line ends: the next may
        be in the writing, or cut by a kill."""
        with self.log.open("rb") as log:
            log.seek(since)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        return [json.loads(line) for line in text[:whole].splitlines() if line.startswith(b"{")], since + whole

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds=STOP_SECONDS):
        return self.process.wait(seconds)

    def stop(self):
        """SIGTERM; exit code 0 within STOP_SECONDS is part of every test."""
        if self.process.poll() is None:
            self.terminate()
            try:
                code = self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"did not end {STOP_SECONDS} s after SIGTERM\n{self.log_text()}") from None
            assert code == 0, f"exit code {code} after SIGTERM\n{self.log_text()}"
        else:
            raise AssertionError(f"the server died by itself with {self.process.returncode}\n{self.log_text()}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def rss(self):
        return self.usage.memory_info().rss

    def idle(self, within=10.0, share=0.2):
        """Whether the server comes to rest within so many seconds: under `share` of one core over half a second."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            before = sum(self.usage.cpu_times()[:2])
            time.sleep(0.5)
            if sum(self.usage.cpu_times()[:2]) - before < share * 0.5:
                return True
        return False


@contextlib.contextmanager
def serve(*args, **kwargs):
    server = Server(*args, **kwargs)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    else:
        server.stop()


def run(*args, stdin=None, timeout=120, env=None):
    """`updraft ARGS...`: the finished process, with text output."""
    return subprocess.run([str(BIN), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})})
