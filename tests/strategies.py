"""
Hypothesis strategies for what users pass to nsbox, and the profile for all tests.

Importing this module loads the profile: no database, so that a run leaves
nothing in the source tree and needs no right to write there, and no deadline,
since tests share the machine with others.
"""

import os
import string
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from nsbox import Bind, Dev, Overlay, Proc, Tmpfs
from nsbox.mount import Mount

set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), f"hypothesis-{os.geteuid()}"))
settings.register_profile(
    "nsbox",
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("nsbox")

MAX_ID = 2**32 - 2

ids = st.integers(0, MAX_ID)
sizes = st.integers(1, 2**63 - 1)

# What a file name may be: anything but "/" and NUL; undecodable bytes are surrogates.
names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..")) | st.binary(min_size=1, max_size=8).map(
    lambda raw: os.fsdecode(raw.replace(b"/", b"_").replace(b"\0", b"_"))
).filter(lambda name: name not in (".", ".."))
"""Components of paths."""

targets = st.lists(names, max_size=5).map(lambda parts: "/" + "/".join(parts))
"""Normalised paths inside."""

untidy_targets = st.lists(names | st.sampled_from(["", "."]), max_size=8).map(
    lambda parts: "/" + "/".join(parts)
)
"""Absolute paths with "//" and "/./" in them."""

# Few names and little depth, so that mounts often lie inside each other.
_nested = st.lists(st.sampled_from(["a", "b", "a-b", "é"]), min_size=1, max_size=3).map(
    lambda parts: "/srv/" + "/".join(parts)
)


_MOUNTS: tuple[Callable[[str], Mount], ...] = (
    lambda target: Bind("/host", target, readonly=True),
    lambda target: Bind("/host", target, readonly=False),
    Tmpfs,
    Dev,
    Proc,
    lambda target: Overlay(["/low1", "/low2"], target),
    lambda target: Overlay("/low1", target, upper="/store/up:,\\", work="/store/work"),
)

mount_lists: st.SearchStrategy[list[Mount]] = st.lists(
    st.tuples(_nested, st.sampled_from(_MOUNTS)), unique_by=lambda pair: pair[0], max_size=6
).map(lambda pairs: [make(target) for target, make in pairs])
"""Mounts on different targets, some inside others."""

environments = st.dictionaries(
    st.text(string.ascii_letters + string.digits + "_.é", min_size=1, max_size=8),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
    max_size=5,
)
