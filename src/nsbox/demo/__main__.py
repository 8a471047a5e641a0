"""
The command line of the demonstration.

Parses arguments, gathers the facts and prints them; turns every expected
failure into one readable message and an exit status.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence

from .. import NsboxError, lowlevel
from ..lowlevel import ResolveFlag
from . import shell, text
from .facts import DemoError, gather


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration, and return its exit status."""
    _open_standard_streams()
    options = _parser().parse_args(arguments)
    try:
        status = _run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough. The interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (NsboxError, DemoError, OSError) as error:
        _complain(error)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nsbox.demo",
        description="See, live on this machine, that a container is just a special process.",
        epilog="Needs neither root nor Docker.",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="directory to be the root file system inside; must hold /bin/sh "
        "(default: the host's system directories, read-only)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    form.add_argument("--shell", action="store_true", help="open a shell inside, to look around")
    parser.add_argument(
        "--no-color", action="store_true", help="no colours (so does NO_COLOR in the environment)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.root is not None:
        _check_root(options.root)
    if options.shell:
        return shell.run(options.root, color=_wants_color(options.no_color))
    facts = gather(options.root)
    if options.json:
        print(json.dumps(dataclasses.asdict(facts), indent=2))
    else:
        print(text.render(facts, _style(options.no_color)), end="")
    return 0


def _check_root(root: str) -> None:
    """
    Check that a directory can serve as a root.

    Raises:
        DemoError: If it is no directory, or holds no /bin/sh.
    """
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DemoError(f"--root: {error.strerror}: {root!r}") from None
    try:
        # As seen from inside: an absolute link in the root must not lead to the host.
        flags = os.O_PATH | os.O_CLOEXEC
        found = lowlevel.openat2(directory, "bin/sh", flags, 0, ResolveFlag.RESOLVE_IN_ROOT)
        os.close(found)
    except OSError:
        raise DemoError(
            f"--root: there is no /bin/sh in {root!r}; it has to be a root file system, "
            "for example an unpacked container image"
        ) from None
    finally:
        os.close(directory)


def _style(no_color: bool) -> text.Style:
    if not sys.stdout.isatty():
        return text.Style()
    try:
        "╭─│…".encode(sys.stdout.encoding)
        unicode = True
    except UnicodeEncodeError:
        unicode = False
    columns = shutil.get_terminal_size().columns
    return text.Style.for_terminal(columns, color=_wants_color(no_color), unicode=unicode)


def _wants_color(no_color: bool) -> bool:
    """Tell whether to use colours: https://no-color.org, and never in a pipe."""
    return (
        sys.stdout.isatty()
        and not no_color
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def _complain(error: Exception) -> None:
    """Print an error, and the hint that it carries, if any."""
    message, hint = str(error), getattr(error, "hint", None)
    if hint is not None:
        message = message.removesuffix(f" ({hint})")
    print(f"nsbox.demo: {message}", file=sys.stderr)
    if hint is not None:
        print(f"hint: {hint}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Fill the places of standard streams that are closed, so that no pipe lands there."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
