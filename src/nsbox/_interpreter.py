"""Where the running Python lives, as mounts."""

import os
import sys
import sysconfig

from ._values import is_within
from .mount import Bind, Stopgap


def interpreter_mounts() -> list[Bind]:
    """
    Return read-only binds that make the running Python work inside.

    They show its prefix, that of the Python its virtual environment was made
    from, and the directories that its executable's links lead through, each at
    its own path::

        Sandbox(mounts=interpreter_mounts()).run([sys.executable, "-c", "print(1)"])

    Modules that lie elsewhere (PYTHONPATH, editable installs) are not included.
    All else in these directories is: a Python that is started by a link in your
    home directory shows that directory.
    """
    directories = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    library = sysconfig.get_config_var("LIBDIR")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and library and os.path.isdir(library):
        directories.add(library)
    directories.update(_link_directories(sys.executable))
    directories = {os.path.abspath(directory) for directory in directories}
    # A target must not run through a link, or it would hide what the link leads to.
    directories |= {os.path.realpath(directory) for directory in directories}
    outermost = [
        directory
        for directory in sorted(directories)
        if not any(is_within(directory, other) for other in directories - {directory})
    ]
    binds = [Bind(directory) for directory in outermost if directory != "/"]
    return binds + [
        # Something has to be there, and this shows nothing more of the host.
        Stopgap(sys.prefix, os.path.join(directory, "python"))
        for directory in _left_by_dots(sys.executable)
        if not any(is_within(directory, other) for other in [*outermost, "/proc", "/usr"])
    ]


def _left_by_dots(path: str) -> list[str]:
    """
    Return the directories that a path leaves again by "..".

    A Python that was started as ../venv/bin/python calls itself
    /there/../venv/bin/python, and the kernel looks for /there.
    """
    parts = path.split("/")
    lengths = [length for length, part in enumerate(parts) if part == ".."]
    return sorted({os.path.normpath("/".join(parts[:length])) for length in lengths} - {"/"})


def _link_directories(path: str) -> set[str]:
    """Return the directory of every symbolic link between path and the file it means."""
    directories = set()
    for _ in range(40):  # as many as the kernel follows
        if not path or not os.path.islink(path):
            break
        directories.add(os.path.dirname(path))
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    if path:
        directories.add(os.path.dirname(path))
    return directories
