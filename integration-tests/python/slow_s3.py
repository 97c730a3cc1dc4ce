#!/usr/bin/env python3
"""A folder as a read-only bucket of S3 on loopback, as slow and as unreliable as asked for.

Answers GetObject with ranges, HeadObject and ListObjectsV2, asks for no signature, and counts. `/_/counts` says what was asked
until now, `/_/set?latency=0.02&slow_fraction=0.01` changes the numbers of `Manners`, and `/_/reset` forgets the counts.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import os
import pathlib
import random
import re
import sys
import threading
import time
import urllib.parse
import urllib.request
from xml.sax.saxutils import escape

PAGE_KEYS = 1000
REASONS = {200: "OK", 206: "Partial Content", 404: "Not Found", 412: "Precondition Failed", 416: "Range Not Satisfiable", 501: "Not Implemented", 503: "Slow Down"}
# What is written at once where bytes are counted out one after the other.
PIECE = 256 << 10


@dataclasses.dataclass
class Manners:
    """How requests for objects are answered; times are seconds."""

    latency: float = 0.0
    # Of the requests, so many take `slow_latency` instead.
    slow_fraction: float = 0.0
    slow_latency: float = 1.0
    # So many of the next reads of objects take `slow_latency` whatever chance says, but not when they are asked again.
    slow_next: float = 0.0
    # Of the requests, so many fail: a third each with 503, with a reset, and with a reset in the middle of the body.
    fail_fraction: float = 0.0
    # Bytes per second of one connection; 0 = as fast as it goes.
    rate: float = 0.0


@dataclasses.dataclass
class Counts:
    """What was asked for."""

    get: int = 0
    head: int = 0
    list: int = 0
    bytes: int = 0
    slowed: int = 0
    failed: int = 0
    connections: int = 0
    # The most requests for objects at one time.
    together: int = 0


class Bucket:
    """The objects: files below `folder`."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()

    def file(self, key):
        """An open file and its tag; None if there is no such object."""
        path = (self.folder / key).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            return None
        file = path.open("rb")
        return file, os.fstat(file.fileno())

    def keys(self):
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted((path.relative_to(self.folder).as_posix(), path.stat()) for path in found)

    def listing(self, query, name):
        """ListObjectsV2."""
        prefix, delimiter, after = query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", query.get("start-after", ""))
        items, folders, truncated = [], set(), ""
        for key, stat in self.keys():
            if not key.startswith(prefix) or key <= after:
                continue
            if len(items) + len(folders) >= PAGE_KEYS:
                truncated = last
                break
            last = key
            inner, slash, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if slash:
                folders.add(prefix + inner + slash)
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
            items.append(f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>&quot;{tag(stat)}&quot;</ETag><Size>{stat.st_size}</Size></Contents>")
        common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders))
        more = f"<NextContinuationToken>{escape(truncated)}</NextContinuationToken>" if truncated else ""
        body = f"<Name>{escape(name)}</Name><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>{more}{''.join(items)}{common}"
        return f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{body}</ListBucketResult>'.encode()


def tag(stat):
    return hashlib.md5(f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}".encode()).hexdigest()


def span(text, size):
    """(begin, end) of a Range header; None if there is nothing in it."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    begin, end = (max(0, size - int(last)), size) if not first else (int(first), min(size, int(last) + 1) if last else size)
    return (begin, end) if begin < end else None


class Server:
    """Serves `bucket` with `manners`."""

    def __init__(self, folder, manners, seed=1):
        self.bucket, self.manners, self.counts = Bucket(folder), manners, Counts()
        self.random, self.now, self.hung = random.Random(seed), 0, set()

    async def connection(self, reader, writer):
        self.counts.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self.request(reader, writer):
                pass
        with contextlib.suppress(ConnectionError, OSError):
            writer.close()

    async def request(self, reader, writer):
        """Answers one request; False when the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        url = urllib.parse.urlsplit(target)
        path, query = urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if path.startswith("/_/"):
            return self.say(writer, 200, self.told(path, query))
        bucket, _, key = path.lstrip("/").partition("/")
        if method not in ("GET", "HEAD"):
            return self.say(writer, 501)
        self.now += 1
        self.counts.together = max(self.counts.together, self.now)
        try:
            manners, chance = self.manners, self.random.random
            slow = chance() < manners.slow_fraction
            if method == "GET" and key and manners.slow_next >= 1 and (part := (key, headers.get("range"))) not in self.hung:
                slow, manners.slow_next = True, manners.slow_next - 1
                self.hung.add(part)
            fails = int(chance() * 3) if chance() < manners.fail_fraction else None
            self.counts.slowed += slow
            self.counts.failed += fails is not None
            await asyncio.sleep(manners.slow_latency if slow else manners.latency)
            if fails == 0:
                return self.say(writer, 503, b"<Error><Code>SlowDown</Code><Message>as told</Message></Error>")
            if fails == 1:
                writer.transport.abort()
                return False
            if not key:
                self.counts.list += 1
                return self.say(writer, 200, self.bucket.listing(query, bucket))
            return await self.object(writer, method, key, headers, fails == 2)
        finally:
            self.now -= 1

    def told(self, path, query):
        if path == "/_/set":
            self.manners = dataclasses.replace(self.manners, **{name: float(value) for name, value in query.items()})
        if path == "/_/reset":
            self.counts = Counts()
        return json.dumps(dataclasses.asdict(self.counts)).encode()

    def say(self, writer, status, body=b"", headers=""):
        writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        return True

    async def object(self, writer, method, key, headers, cut):
        if method == "HEAD":
            self.counts.head += 1
        else:
            self.counts.get += 1
        found = self.bucket.file(key)
        if found is None:
            return self.say(writer, 404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>" if method == "GET" else b"")
        file, stat = found
        with file:
            etag = f'"{tag(stat)}"'
            if headers.get("if-match", etag) != etag:
                return self.say(writer, 412, b"<Error><Code>PreconditionFailed</Code></Error>" if method == "GET" else b"")
            begin, end = 0, stat.st_size
            described = f"ETag: {etag}\r\nLast-Modified: {email.utils.formatdate(stat.st_mtime, usegmt=True)}\r\nAccept-Ranges: bytes\r\n"
            status = 200
            if "range" in headers:
                asked = span(headers["range"], stat.st_size)
                if asked is None:
                    return self.say(writer, 416)
                begin, end = asked
                status, described = 206, described + f"Content-Range: bytes {begin}-{end - 1}/{stat.st_size}\r\n"
            writer.write(f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {end - begin}\r\n{described}\r\n".encode())
            if method == "HEAD":
                return True
            self.counts.bytes += end - begin
            await self.body(writer, file, begin, begin + (end - begin) // 2 if cut else end)
            if cut:
                writer.transport.abort()
            return not cut

    async def body(self, writer, file, begin, end):
        await writer.drain()
        loop, rate = asyncio.get_running_loop(), self.manners.rate
        if not rate and end > begin:
            await loop.sendfile(writer.transport, file, begin, end - begin)
            return
        started, at = loop.time(), begin
        while at < end:
            piece = min(PIECE, end - at)
            file.seek(at)
            writer.write(file.read(piece))
            await writer.drain()
            at += piece
            await asyncio.sleep(started + (at - begin) / rate - loop.time())


async def serve(folder, manners, port, ready):
    server = Server(folder, manners)
    async with await asyncio.start_server(server.connection, "127.0.0.1", port, limit=1 << 16, backlog=1024) as listening:
        ready(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        await listening.serve_forever()


class Told:
    """A server in this process, in a thread of its own: for tests, which ask little of it."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def ask(self, what, **query):
        with urllib.request.urlopen(f"{self.endpoint}/_/{what}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def serving(folder, **manners):
    """A server over `folder` for a block."""
    loop, addresses = asyncio.new_event_loop(), []
    ready, listening = addresses.append, threading.Event()
    task = None

    def run():
        nonlocal task
        asyncio.set_event_loop(loop)
        task = loop.create_task(serve(folder, Manners(**manners), 0, lambda address: (ready(address), listening.set())))
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert listening.wait(10)
    try:
        yield Told(addresses[0])
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def seconds(text):
    """20ms, 1.5s or 2 as seconds."""
    value, unit = re.fullmatch(r"([0-9.]+)(ms|s|)", text).groups()
    return float(value) / (1000 if unit == "ms" else 1)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--latency", type=seconds, default=0.0, help="before each answer, as 20ms [none]")
    p.add_argument("--slow-fraction", type=float, default=0.0, help="of the requests take --slow-latency instead [0]")
    p.add_argument("--slow-latency", type=seconds, default=1.0, help="[1s]")
    p.add_argument("--fail-fraction", type=float, default=0.0, help="of the requests end in 503 or a reset [0]")
    p.add_argument("--rate", type=float, default=0.0, help="bytes per second of one connection [no limit]")
    a = p.parse_args()
    manners = Manners(latency=a.latency, slow_fraction=a.slow_fraction, slow_latency=a.slow_latency, fail_fraction=a.fail_fraction, rate=a.rate)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(a.folder, manners, a.port, lambda address: print("listening on", address, flush=True)))


if __name__ == "__main__":
    sys.exit(main())
