"""Clients in processes of their own, beside what an experiment does."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import harness

SECONDS_MAX = 120


@contextlib.contextmanager
def bystander(server, what, sql):
    """A client that asks during the block; how it fared is in the yielded dict after it."""
    command = [sys.executable, str(pathlib.Path(__file__).with_name("bystander.py")), server.uri, what, sql]
    path = str(pathlib.Path(harness.__file__).parent)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    fared = {}
    try:
        assert child.stdout.readline() == "asks\n", "the client beside has failed"
        yield fared
        fared |= json.loads(child.communicate(timeout=SECONDS_MAX)[0])
    finally:
        child.kill()
        child.wait()
