"""What the drivers that measure share: their options, sizes, percentiles, data made once, where a figure comes from, Markdown tables."""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

import harness

UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MIB = 1 << 20


def note(text):
    """For who watches a run; results go into files."""
    print(text, file=sys.stderr, flush=True)


def size(text):
    """Bytes of "512MiB"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]iB|B|)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 512MiB")
    return int(float(match[1]) * UNITS[match[2]])


def mib(count):
    return f"{count / MIB:,.0f} MiB"


def percent(share):
    return f"{share * 100:.1f} %".replace(".0 %", " %")


def ms(seconds):
    return round(seconds * 1e3, 2)


def percentile(values, share):
    """The smallest value that `share` of all do not exceed."""
    values = sorted(values)
    return values[max(0, math.ceil(share * len(values)) - 1)]


def host_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def made(target, recipe, make):
    """The folder `target`, made by `make(target)` unless it is there from the same recipe."""
    stamp = target.with_name(f"{target.name}.stamp")
    if not (target.exists() and stamp.exists() and stamp.read_text() == recipe):
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target)
        stamp.write_text(recipe)
    return target


def takes_server(parser):
    """The options by which every experiment is told what to start."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the server, as for `updraft serve --set`")
    binary = os.environ.get("UPDRAFT_BIN", harness.ROOT / "target/release/updraft")
    parser.add_argument("--binary", type=pathlib.Path, default=binary, help="the server [UPDRAFT_BIN, or target/release/updraft]")


def adds_render(commands, name):
    """The command that writes docs/`name`.md."""
    parser = commands.add_parser("render", help=f"write docs/{name}.md from the results in docs/{name}")
    parser.add_argument("results", nargs="*", type=pathlib.Path, help=f"results to take over into docs/{name} first (the .json files of a run)")
    parser.add_argument("--check", action="store_true", help=f"write nothing; fail if docs/{name}.md is not what the figures say")


def starts(arguments, work):
    """Readies a run: the server that `arguments` name, its files under `work`, the arguments as they were given."""
    harness.BIN = pathlib.Path(arguments.binary).resolve()
    harness.WORK = work / "servers"
    harness.WORK.mkdir(parents=True, exist_ok=True)
    arguments.given = given(sys.argv[2:])


def completed(arguments, defaults):
    """Sets those of `defaults` that were not given."""
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def kept(result, path):
    """Writes one experiment's result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    note(f"{path} written")


def given(argv):
    """The arguments as they were given, without those that only mean something on this machine: programs."""
    kept, skip = [], False
    for word in argv:
        if skip or word.startswith(("--binary=", "--build=")):
            skip = False
        elif word in ("--binary", "--build"):
            skip = True
        else:
            kept.append(word)
    return kept


def origin(*packages):
    """Where and when a figure is made, by which versions of Updraft and of these Python packages."""
    with open("/proc/cpuinfo") as info:
        cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "-C", str(harness.ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "day": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory": host_memory(), "kernel": ".".join(platform.release().split(".")[:2])},
        "versions": {
            "updraft": harness.run("--version").stdout.strip(),
            "commit": commit.stdout.strip(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
