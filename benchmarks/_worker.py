"""
A Python process with a chosen amount of memory or number of mounts that takes samples on request.

Run as a program it is that process; imported it is `Worker`, the handle of one. Mounts are made
in a private mount namespace of the worker and vanish with it: the host never sees them.

Protocol: one line of JSON each way, {"method": ..., "argv": [...], "count": n} answered by
{"samples": [...]} or {"unavailable": reason}.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import _report
import _spawners

METHODS = {
    "command": _spawners.by_command,
    "fork": _spawners.by_fork,
    "nsbox": _spawners.by_nsbox,
    "posix_spawn": _spawners.by_posix_spawn,
}

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000


class Worker:
    """
    The handle of a worker process; close() ends it.

    Args:
        memory: bytes the process touches before it takes samples.
        mounts: mounts its namespace shall have at least; 0 leaves the host's namespace alone.
        cover: directory hidden under an empty tmpfs in a private mount namespace.
    """

    def __init__(self, *, memory: int = 0, mounts: int = 0, cover: str | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._errors = os.memfd_create("errors")
        self._stack.callback(os.close, self._errors)
        # The mount point of the worker's mounts; an empty directory to everyone else.
        directory = tempfile.TemporaryDirectory(prefix="nsbox-benchmark-")
        self._stack.enter_context(directory)
        command = [sys.executable, __file__, f"--memory={memory}", f"--mounts={mounts}"]
        command += [f"--directory={directory.name}"]
        command += [f"--cover={cover}"] if cover else []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.mounts = int(self._read_line())
        except BaseException:
            self.close()
            raise

    def samples(self, method: str, argv: Sequence[str], count: int) -> list[int]:
        """
        Take count samples in the worker, one after the other.

        Raises:
            Unavailable: the method cannot run there, or the worker has died.
        """
        assert self._process.stdin is not None
        request = {"method": method, "argv": list(argv), "count": count}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._read_line())
        if "unavailable" in answer:
            raise _spawners.Unavailable(answer["unavailable"])
        return [int(sample) for sample in answer["samples"]]

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = os.pread(self._errors, 1 << 16, 0).decode(errors="replace")
            lines = said.strip().splitlines() or ["it gave no reason"]
            raise _spawners.Unavailable(f"the worker ended: {lines[-1]}")
        return line

    def close(self) -> None:
        """
        End the process, and with it its memory and its mounts.
        """
        self._process.communicate()
        self._stack.close()


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, fstype: str | None, flags: int) -> None:
    kind = fstype.encode() if fstype else None
    result = _libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), None)
    _check(result, f"mount {target}")


def _enter_private_mounts() -> None:
    """
    Move to a mount namespace whose changes nobody else sees.

    A plain user needs a user namespace for it. It maps the caller to itself, so that what is
    measured inside still runs as the plain user it is.
    """
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if uid else 0)), "unshare")
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def _add_mounts(directory: str, wanted: int) -> None:
    """
    Bind-mount one directory as often as it takes to have the wanted number of mounts.

    What a new namespace copies is the mount, whatever file system is behind it.
    """
    _mount("none", directory, "tmpfs", 0)
    source = Path(directory, "source")
    source.mkdir()
    for number in range(wanted - _report.host_mounts()):
        target = Path(directory, str(number))
        target.mkdir()
        _mount(str(source), str(target), None, MS_BIND)


def _take_over_stdio() -> tuple[TextIO, TextIO]:
    """
    Keep the protocol's pipes for ourselves and leave anonymous files to the programs we start.

    Anonymous files and not /dev/null, because OCI runtimes change the owner of what they get.
    """
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    empty = os.memfd_create("stdio")
    os.dup2(empty, 0)
    os.dup2(empty, 1)
    os.close(empty)
    return requests, answers


def _serve(requests: TextIO, answers: TextIO) -> None:
    samplers: dict[tuple[str, ...], _spawners.Sampler] = {}
    for line in requests:
        request = json.loads(line)
        key = (request["method"], *request["argv"])
        answer: dict[str, object]
        try:
            if key not in samplers:
                samplers[key] = METHODS[request["method"]](request["argv"])
            sampler = samplers[key]
            answer = {"samples": [sampler() for _ in range(request["count"])]}
        except (_spawners.Unavailable, OSError, subprocess.SubprocessError) as error:
            answer = {"unavailable": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Takes samples for the other benchmarks.")
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--mounts", type=int, required=True)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--cover")
    options = parser.parse_args()
    requests, answers = _take_over_stdio()
    # One byte repeated is a memset: every page is written, none is shared with the zero page.
    touched = b"\1" * options.memory
    if options.mounts or options.cover:
        _enter_private_mounts()
    if options.cover:
        _mount("none", options.cover, "tmpfs", 0)
    if options.mounts:
        _add_mounts(options.directory, options.mounts)
    print(_report.host_mounts(), file=answers, flush=True)
    _serve(requests, answers)
    assert len(touched) == options.memory  # keeps the memory alive until here


if __name__ == "__main__":
    _main()
