"""What a cgroup's files say, in trees like those the kernel shows: one machine has only one of the versions."""

import os

import pytest

import cgroup

LIMIT = 300 << 20
EVENTS = "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes the machine look as if it had these mounts (type, options) and this process these groups; returns where it is mounted."""

    def shown(kind, options, groups, controllers=""):
        proc, mount = tmp_path / "proc", tmp_path / "cgroups"
        proc.mkdir()
        mount.mkdir()
        (proc / "mounts").write_text(f"proc /proc proc rw,nosuid 0 0\nnone {mount} {kind} {options} 0 0\n")
        (proc / "cgroup").write_text(groups)
        if kind == "cgroup2":
            (mount / "cgroup.controllers").write_text(controllers)
        monkeypatch.setattr(cgroup, "PROC", proc)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        return mount

    return shown


def test_version_2(machine):
    mount = machine("cgroup2", "rw,nosuid", "1:name=systemd:/elsewhere\n0::/user/session\n", "cpuset cpu memory pids\n")
    own = mount / "user/session"
    # The kernel takes no controllers of a group that has processes; here the file takes nothing at all.
    (own / "cgroup.subtree_control").mkdir(parents=True)
    group, reason = cgroup.Cgroup.make(LIMIT)
    assert (group.version, reason, group.path.parent) == (2, "", mount / "user"), "next to this process's own group, which has processes"
    assert (mount / "user/cgroup.subtree_control").read_text() == "+memory"
    assert ((group.path / "memory.max").read_text(), (group.path / "memory.swap.max").read_text()) == (str(LIMIT), "0")
    (group.path / "memory.events").write_text(EVENTS)
    assert group.figures() == {"version": 2, "limit": LIMIT, "oom_kills": 2, "hits": 7, "peak": None}, "no memory.peak before Linux 5.19"
    (group.path / "memory.peak").write_text("4096\n")
    assert group.figures()["peak"] == 4096


def test_version_1(machine):
    mount = machine("cgroup", "rw,memory", "9:cpu:/other\n4:cpuset,memory:/user\n0::/\n")
    (mount / "user").mkdir()
    group, reason = cgroup.Cgroup.make(LIMIT)
    assert (group.version, reason, group.path.parent) == (1, "", mount / "user")
    for name, text in {"oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "failcnt": "7\n", "max_usage_in_bytes": "4096\n"}.items():
        (group.path / f"memory.{name}").write_text(text)
    assert group.figures() == {"version": 1, "limit": int((group.path / "memory.limit_in_bytes").read_text()), "oom_kills": 2, "hits": 7, "peak": 4096}


@pytest.mark.parametrize(
    ("kind", "options", "controllers", "expected"),
    [
        ("cgroup2", "rw", "cpu memory", True),
        ("cgroup2", "ro", "cpu memory", False),
        ("cgroup2", "rw", "cpu pids", False),
        ("cgroup", "rw,memory", "", True),
        ("cgroup", "rw,cpu", "", False),
        ("tmpfs", "rw,memory", "", False),
    ],
)
def test_when_a_group_is_expected(machine, monkeypatch, kind, options, controllers, expected):
    machine(kind, options, "4:memory:/\n0::/\n", controllers)
    assert cgroup.expected() == expected
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not cgroup.expected()


def test_a_group_that_root_is_refused(machine):
    mount = machine("cgroup2", "rw", "0::/\n", "memory\n")
    (mount / "cgroup.subtree_control").mkdir()
    group, reason = cgroup.Cgroup.make(LIMIT)
    assert group is None and "hands the memory controller down" in reason and cgroup.expected()
