"""
Cgroups that are made ahead of runs, and removed after them, by a thread of C.

See csrc/cgroup.c.
"""

import os
from collections.abc import Mapping, Sequence

from . import _calls, _cgroup_names
from ._cgroup_choice import Choice, Purpose, by_controller
from ._cgroup_files import Place, find
from ._native import ffi, lib
from ._spares import maker


class Form:
    """
    What the cgroups of one place have in common: all but their names.

    Args:
        choice: Where they are made.
        purpose: What for.
        figures: Names of the figures that will be read, together.
    """

    def __init__(self, choice: Choice, purpose: Purpose, figures: Sequence[str]) -> None:
        self.choice, self.figures = choice, tuple(figures)
        parents = [part.parent for part in choice.parts]
        settings = [(part.parent, item) for part in choice.parts for item in part.settings]
        entrances = [(part.parent, part.entrance(purpose)) for part in choice.parts]
        entrances = [(parent, file) for parent, file in entrances if file is not None]
        above = by_controller(choice.parts, parents)
        files, self.found = find(tuple(above), self.figures)
        self.n_files = len(files)
        self._indices: Mapping[tuple[Place, str], int] = {
            file: index for index, file in enumerate(files)
        }
        # The text of csrc/cgroup.c is what is left of and right of each name.
        texts = [
            *((parent, "\0") for parent in parents),
            *((parent, f"/{item.file}\0{item.value}\0") for parent, item in settings),
            *((parent, f"/{file}\0") for parent, file in entrances),
            *((above[place], f"/{file}\0") for place, file in files),
        ]
        pieces = [""]
        for parent, rest in texts:
            pieces[-1] += f"{parent}/"
            pieces.append(rest)
        self._pieces = [os.fsencode(piece) for piece in pieces]
        self.struct = ffi.new(
            "struct nsbox_cgroup_form *", [len(parents), len(settings), len(entrances), len(files)]
        )

    def text(self, name: str) -> bytes:
        """Return the lists for a cgroup of that name."""
        return name.encode("ascii").join(self._pieces)

    def index(self, place: Place, file: str) -> int | None:
        """Return which of the files with figures one is, None if it is none of them."""
        return self._indices.get((place, file))


class Ahead:
    """
    A cgroup that the thread is to make; nothing is left of it when nobody holds this.

    All of it is one call into C each: a signal handler may raise before or after.
    """

    def __init__(self, form: Form) -> None:
        """
        Order one.

        Raises:
            OSError: If that cannot be; EAGAIN if there are several already.
        """
        self.form, self.name = form, _cgroup_names.new_name()
        # Held here too, for a __del__ that runs after the destructor: see _child.Child.
        self._memory = ffi.new("struct nsbox_cgroup_holder *")
        self._holder = ffi.gc(self._memory, lib.nsbox_cgroup_release)
        self._entrances = ffi.new("struct nsbox_files *")
        self._figures = ffi.new("struct nsbox_files *")
        text = form.text(self.name)
        ret = lib.nsbox_cgroup_order(maker.pointer, form.struct, text, len(text), self._holder)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def take(self) -> bool:
        """Wait until it is made; tell whether it is there."""
        return bool(lib.nsbox_cgroup_take(self._holder, self._entrances, self._figures) == 0)

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors of its entrances, which are open until :meth:`close`."""
        return tuple(self._entrances.fds[0 : self._entrances.count])

    def close(self) -> None:
        """Close its entrances; without effect the second time."""
        lib.nsbox_cgroup_close_entrances(self._holder)

    def figure_fileno(self, place: Place, file: str) -> int:
        """Return the descriptor of a file with figures, -1 if it is not here."""
        index = self.form.index(place, file)
        return -1 if index is None else int(self._figures.fds[index])

    def read(self) -> list[str]:
        """Return what its files with figures hold."""
        return _calls.read_texts(
            lambda buffer, size: lib.nsbox_cgroup_read(self._holder, buffer, size),
            self.form.n_files,
        )

    def retire(self) -> bool:
        """Have it removed by the thread; tell whether that will be."""
        return bool(lib.nsbox_cgroup_retire(self._holder))


def tidy() -> None:
    """Return when nothing is left of those that were retired."""
    if maker.existing != ffi.NULL:
        lib.nsbox_maker_tidy(maker.existing)


def left() -> list[str]:
    """Return the directories of those that could not be removed: they are the caller's now."""
    found: list[str] = []
    if maker.existing == ffi.NULL:
        return found
    while size := lib.nsbox_maker_left(maker.existing, ffi.NULL, 0):
        buffer = ffi.new("char[]", size)
        got = lib.nsbox_maker_left(maker.existing, buffer, size)
        if got <= size:  # else another thread was faster, and this is about another one
            found += os.fsdecode(bytes(ffi.buffer(buffer, got))).split("\0")[:-1]
    return found
