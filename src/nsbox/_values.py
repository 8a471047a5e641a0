"""Check, normalise and compare what users pass: sizes, ids, paths, strings. No I/O."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import PlanError, PlanTypeError

PathArg = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SIZE = re.compile(r"([0-9]{1,19})([KMGT]?)", re.ASCII)  # 2**63 has 19 digits
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_ID = 2**32 - 2


def short(value: object) -> str:
    """Return a value for a message; Python refuses to print ints of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_size(name: str, value: object) -> int:
    """
    Return a size in bytes.

    Args:
        name: What the size is of, for the message.
        value: A positive int (bytes), or digits with K, M, G or T (powers of 1024).

    Raises:
        PlanError: For anything else. Zero too: to tmpfs it would mean "no limit".
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise PlanError(
                f"{name}: {short(value)} is not a size; use bytes or '64K', '256M', '1G'"
            )
        value = int(match[1]) * _UNITS[match[2]]
    elif not isinstance(value, int) or isinstance(value, bool):
        raise PlanTypeError(f"{name}: a size is an int or a str, not {type(value).__name__}")
    if not 0 < value < 2**63:
        raise PlanError(f"{name}: a size is positive and below 2**63, not {short(value)}")
    return value


def check_id(name: str, value: object) -> int:
    """Return a user or group id; only a true int in the kernel's range is one."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanTypeError(f"{name}: an id is an int, not {value!r}")
    if not 0 <= value <= MAX_ID:
        raise PlanError(f"{name}: an id is between 0 and {MAX_ID}, not {short(value)}")
    return value


def check_mode(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanTypeError(f"{name}: permission bits are an int, not {value!r}")
    if not 0 <= value <= 0o7777:
        raise PlanError(f"{name}: permission bits are between 0 and 0o7777, not {short(value)}")
    return value


def check_timeout(name: str, value: object) -> float:
    """Return seconds; any number but NaN, which would never be reached."""
    if not isinstance(value, (int, float)):
        raise PlanTypeError(f"{name}: seconds are an int or a float, not {short(value)}")
    if value != value:
        raise PlanError(f"{name}: {value!r} is no number of seconds")
    return value


def check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise PlanTypeError(f"{name}: must be True or False, not {value!r}")
    return value


def check_iterable(name: str, value: Any) -> Iterator[Any]:
    try:
        return iter(value)
    except TypeError:
        raise PlanTypeError(
            f"{name}: must be a list or another iterable, not {short(value)}"
        ) from None


def check_items(name: str, value: Any) -> tuple[Any, ...]:
    """Return the items of a collection, which may be an iterator."""
    return tuple(check_iterable(name, value))


def check_text(name: str, value: object) -> str:
    """Return a str that can cross into the kernel: no NUL."""
    if not isinstance(value, str):
        raise PlanTypeError(f"{name}: must be a str, not {type(value).__name__}")
    if "\0" in value:
        raise PlanError(f"{name}: {value!r} contains a NUL character")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise PlanError(f"{name}: {value!r} cannot be encoded for the kernel") from None
    return value


def check_path(name: str, value: object) -> str:
    """Return a path as str (undecodable bytes as surrogates); not empty, no NUL."""
    try:
        path = os.fsdecode(value)  # type: ignore[arg-type]  # checked right here
    except TypeError:
        raise PlanTypeError(
            f"{name}: must be a str, bytes or os.PathLike, not {type(value).__name__}"
        ) from None
    check_text(name, path)
    if not path:
        raise PlanError(f"{name}: the path is empty")
    return path


def check_target(name: str, value: object) -> str:
    """
    Return a path inside the sandbox, normalised: absolute, no ".", no "//".

    Raises:
        PlanError: If it is relative or has a ".." component, which could mean
            different places before and after symbolic links are followed.
    """
    path = check_path(name, value)
    if not path.startswith("/"):
        raise PlanError(f"{name}: {path!r} must be absolute")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PlanError(f"{name}: {path!r} must not contain '..'")
    return "/" + "/".join(parts)


def check_passed(fds: object, directories: object) -> tuple[Any, ...]:
    """Return the descriptors of pass_fds and of pass_directories together."""
    passed = check_items("pass_fds", fds)
    named = check_items("pass_directories", directories)
    check_no_directories(passed, named)
    return (*passed, *named)


def check_no_directories(passed: Iterable[object], named: Iterable[object]) -> None:
    """
    Refuse directories among descriptors that are handed on, unless they are named as such.

    Through a directory of the host a payload reaches all that lies below it,
    and by ".." what lies above. What is no descriptor is for others to refuse.
    """
    allowed = list(named)
    for fd in passed:
        if not isinstance(fd, int) or fd in allowed:
            continue
        try:
            mode = os.fstat(fd).st_mode
        except (OSError, OverflowError):
            continue
        if stat.S_ISDIR(mode):
            raise PlanError(
                f"pass_fds: {fd} is a directory, through which the payload could leave its root; "
                "if that is meant, name it in pass_directories of run() or spawn()"
            )


def check_environment(name: str, value: object) -> dict[str, str]:
    """Return a copy of an environment: str, bytes or paths, no "=" in a key."""
    if not hasattr(value, "items"):
        raise PlanTypeError(f"{name}: must be a mapping, not {type(value).__name__}")
    result = {}
    for key, text in value.items():
        for part in (key, text):
            if not isinstance(part, (str, bytes, os.PathLike)):
                raise PlanTypeError(f"{name}: {part!r} is neither str, bytes nor os.PathLike")
        key, text = os.fsdecode(key), os.fsdecode(text)
        if not key or "=" in key:
            raise PlanError(f"{name}: {key!r} cannot be the name of a variable")
        result[check_text(name, key)] = check_text(f"{name} {key}", text)
    return result


def is_within(path: str, directory: str) -> bool:
    """Tell whether a normalised path is a directory or lies below it."""
    return (path + "/").startswith(directory.rstrip("/") + "/")


def check_capabilities(value: object, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return capability names, upper case with CAP_, sorted by number, each once."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise PlanTypeError(f"capabilities: must be a sequence of names, not {value!r}")
    names = set()
    for item in value:
        name = check_text("capabilities", item).upper()
        if not name.startswith("CAP_"):
            name = "CAP_" + name
        if name not in known:
            raise PlanError(f"capabilities: {item!r} is no capability; see capabilities(7)")
        names.add(name)
    return tuple(sorted(names, key=known.index))
