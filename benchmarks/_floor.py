"""
The floor: a C program that makes the system calls of nsbox and does nothing else.

Its command line is written from nsbox's own plan, so that both do the same whatever this host
has in /etc or nsbox learns to mount.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from _spawners import Unavailable
from nsbox import Sandbox
from nsbox._plan import Code, Op, Plan

SOURCE = Path(__file__).with_name("floor.c")
KINDS = {
    Code.BIND: "bind",
    Code.DEVICE: "device",
    Code.MOUNT: "mount",
    Code.DIRECTORY: "mkdir",
    Code.FILE: "file",
    Code.SYMLINK: "symlink",
    Code.READONLY: "readonly",
}
# What floor.c does without being told, always and in this order.
FIRST = (Code.LOOPBACK, Code.HOSTNAME, Code.IDS)
LAST = (Code.PIVOT,)
HOST_ROOT = -1


class Operations:
    """
    The operations of a plan in the words of floor.c.

    Args:
        plan: what nsbox would do.
        directory: for copies of the files that the plan writes.

    Raises:
        Unavailable: the plan has something that floor.c cannot do, so that it would be no floor.
    """

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.words: list[str] = []
        self._directory = directory
        self._count = 0
        self._positions: dict[int, int] = {}
        self._root = -1
        codes = tuple(op.code for op in plan.ops)
        if plan.joins or codes[: len(FIRST)] != FIRST or codes[-len(LAST) :] != LAST:
            raise Unavailable("the plan of nsbox begins or ends in a way floor.c does not know")
        self._made = {(op.parent, op.target) for op in plan.ops if op.code is Code.DIRECTORY}
        for index in range(len(FIRST), len(plan.ops) - len(LAST)):
            self._add(plan, index)

    def _add(self, plan: Plan, index: int) -> None:
        op = plan.ops[index]
        if op.code not in KINDS or op.idmap:
            raise Unavailable(f"floor.c does not know the operation {op.code.name} of nsbox")
        if op.code in (Code.BIND, Code.MOUNT):
            if op.target == "":
                self._positions[index] = self._put(op, HOST_ROOT, "/")
                self._root = self._positions[index]
                return
            base, path = self._mount_point(plan, op)
        else:
            base, path = self._positions[op.parent], op.target
        self._positions[index] = self._put(op, base, path)

    def _mount_point(self, plan: Plan, op: Op) -> tuple[int, str]:
        """
        Name the mount that holds a mount point, and make the directories that lead to it.
        """
        holder = plan.ops[op.parent].target
        base = self._positions[op.parent]
        path = os.path.relpath(op.target, holder) if holder else op.target
        parts = path.split("/")
        for length in range(1, len(parts) + 1):
            below = "/".join(parts[:length])
            if (op.parent, below) not in self._made:
                self._words("mkdir", base, below, number=0o755)
                self._made.add((op.parent, below))
        return base, path

    def _put(self, op: Op, base: int, path: str) -> int:
        number, extra = op.attributes, ""
        text = op.source or ""
        if op.code in (Code.DIRECTORY, Code.FILE):
            number = op.mode
        if op.code is Code.FILE:
            copy = self._directory / f"content{self._count}"
            copy.write_bytes(op.content)
            text = str(copy)
        elif op.code is Code.DEVICE:
            extra = f"{op.device >> 32}:{op.device & 0xFFFFFFFF}"
        elif op.code is Code.MOUNT:
            extra = ",".join(f"{key}={value}" for key, value in op.options)
        return self._words(KINDS[op.code], base, path, text, number, extra)

    def _words(
        self, kind: str, base: int, path: str, text: str = "", number: int = 0, extra: str = ""
    ) -> int:
        self.words += [kind, str(base), path, text, str(number), extra]
        self._count += 1
        return self._count - 1


def command_line(box: Sandbox, argv: Sequence[str], directory: Path) -> list[str]:
    """
    Write the arguments that make floor.c do what nsbox does for a sandbox.
    """
    plan = box._plan()
    ids = plan.ids
    hostname = next(op.source for op in plan.ops if op.code is Code.HOSTNAME)
    return [
        "root" if plan.parent_sources else "user",
        f"{ids.uid} {ids.host_uid} 1",
        f"{ids.gid} {ids.host_gid} 1",
        hostname or "",
        *Operations(plan, directory).words,
        "--",
        *argv,
    ]


def compile_floor(compiler: str, directory: Path) -> Path:
    """
    Compile floor.c.

    Raises:
        Unavailable: it does not compile here.
    """
    binary = directory / "floor"
    command = [compiler, "-O2", "-o", str(binary), str(SOURCE)]
    build = subprocess.run(command, check=False, capture_output=True, text=True)
    if build.returncode != 0:
        raise Unavailable(f"floor.c does not compile here: {build.stderr.strip()}")
    return binary


class Floor:
    """
    A floor program that waits for requests.

    Args:
        command: the program and its arguments.
        environment: of the programs it runs.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sample(self) -> int:
        """
        Request one spawn and return the nanoseconds it took in C.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(self._process.stderr.read().strip() or "floor ended without a word")
        return int(line)

    def close(self) -> None:
        """
        End the process: it stops at the end of its input.
        """
        self._process.communicate()
