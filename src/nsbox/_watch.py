"""
The thread of C that ends payloads at their limits, as Python sees it.

See csrc/watcher.c. One watcher for each process; a fork gets its own.
"""

import os
from typing import Final

from ._forks import Own
from ._native import ffi, lib

HIT_WALL_TIME = int(lib.NSBOX_HIT_WALL_TIME)
HIT_CPU_TIME = int(lib.NSBOX_HIT_CPU_TIME)


watcher: Final = Own(lib.nsbox_watcher_create, lib.nsbox_watcher_forget)


class Watch:
    """
    One payload to be watched, from its spawn to :meth:`remove`.

    Args:
        wall_time: Nanoseconds, 0 for no limit.
        cpu_time: Nanoseconds, 0 for no limit.
        cpus: Processors on which the payload can run at the same time.
        cgroup: Descriptor of the directory of a cgroup to kill, or -1. The spawn
            makes a copy.
        usage: Descriptor of cpu.stat or cpuacct.usage, or -1. The same.
        outlived: Other processes may outlive the payload; they are killed then.
    """

    def __init__(
        self, *, wall_time: int, cpu_time: int, cpus: int, cgroup: int, usage: int, outlived: bool
    ) -> None:
        # Held here too, for a __del__ that runs after the destructor: see _child.Child.
        self._memory = ffi.new(
            "struct nsbox_watch *",
            {
                "watcher": watcher.pointer,
                "pidfd": -1,
                "cgroup": cgroup,
                "usage": usage,
                "outlived": outlived,
                "wall_time": wall_time,
                "cpu_time": cpu_time,
                "cpus": cpus,
            },
        )
        # The thread must never look at memory that is gone, whatever is raised meanwhile.
        self.struct = ffi.gc(self._memory, lib.nsbox_watch_remove)

    def add(self) -> None:
        """
        Make it known to the thread before the spawn, which then takes no time for that.

        Raises:
            OSError: If there is no descriptor or no thread to be had.
        """
        ret = lib.nsbox_watch_add(self.struct)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    @property
    def hit(self) -> int:
        """HIT_WALL_TIME or HIT_CPU_TIME if the payload was killed for that, else 0."""
        return int(self.struct.hit)

    def remove(self) -> None:
        """Watch it no longer; without effect the second time."""
        lib.nsbox_watch_remove(self.struct)
