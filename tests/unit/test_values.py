"""Sizes, ids, paths, environments and capabilities, as users may pass them."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox._constants import CAPABILITIES
from nsbox._values import (
    check_bool,
    check_capabilities,
    check_environment,
    check_id,
    check_mode,
    check_path,
    check_target,
    check_text,
    parse_size,
)
from nsbox.errors import PlanError, PlanTypeError
from strategies import MAX_ID, environments, ids, sizes, targets, untidy_targets

HUGE = 10**5000
"""An int whose decimal text Python refuses to make."""


# ---- sizes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("0001", 1),
        ("64K", 64 << 10),
        ("256M", 256 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
        (1, 1),
        (4096, 4096),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_size_is_understood(text: object, size: int) -> None:
    """A size is an int of bytes, or digits with a unit that is a power of 1024."""
    assert parse_size("size", text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K",
        "12Q",
        "12k",
        "12KB",
        "12 K",
        " 12",
        "12\n",
        "1 G",
        "1.5G",
        "-1",
        "+1",
        "0x10",
        "1_000",
        "1e3",
        "\u0661\u0662",  # Arabic-Indic digits, which int() takes
        "\uff11K",  # a full-width digit
        "12\0",
    ],
)
def test_size_of_other_text_is_refused(text: str) -> None:
    """Text that is not plain digits and a unit is no size."""
    with pytest.raises(PlanError) as caught:
        parse_size("size", text)
    assert not isinstance(caught.value, PlanTypeError)


@pytest.mark.parametrize("value", [0, -1, 2**63, -(2**63), "0", "0G", "9999999999T"])
def test_size_out_of_range_is_refused(value: object) -> None:
    """A size is positive and fits the kernel's type; zero would mean no limit to tmpfs."""
    with pytest.raises(PlanError) as caught:
        parse_size("size", value)
    assert not isinstance(caught.value, PlanTypeError)


@pytest.mark.parametrize("value", [HUGE, -HUGE, "9" * 5000], ids=["int", "negative", "text"])
def test_size_too_long_to_print_is_refused(value: object) -> None:
    """A number of thousands of digits is a PlanError like any other that is too large."""
    with pytest.raises(PlanError):
        parse_size("size", value)


@pytest.mark.parametrize("value", [True, False, 1.5, None, b"64K", [1], {}], ids=repr)
def test_size_of_wrong_type_is_refused(value: object) -> None:
    """Only int and str can be a size; a bool is neither."""
    with pytest.raises(PlanTypeError):
        parse_size("size", value)


@given(sizes)
def test_size_in_range_is_itself(size: int) -> None:
    """Every size in range is taken as it is, as an int and as digits."""
    assert parse_size("size", size) == parse_size("size", str(size)) == size


@given(st.integers(1, 2**20), st.sampled_from([("K", 10), ("M", 20), ("G", 30), ("T", 40)]))
def test_size_unit_is_a_shift(number: int, unit: tuple[str, int]) -> None:
    """A unit multiplies by its power of two."""
    assert parse_size("size", f"{number}{unit[0]}") == number << unit[1]


@given(st.text(max_size=8))
def test_size_of_any_text_is_in_range_or_refused(text: str) -> None:
    """No text makes a size outside the range, nor another exception."""
    try:
        size = parse_size("size", text)
    except PlanError:
        return
    assert 0 < size < 2**63


# ---- ids and modes -------------------------------------------------------


@pytest.mark.parametrize(
    "value", [-1, 2**32 - 1, 2**32, -(2**31), HUGE], ids=lambda v: f"{v:#x}"[:12]
)
def test_id_out_of_range_is_refused(value: int) -> None:
    """An id is below 2**32 - 1, which means "unchanged" to the kernel."""
    with pytest.raises(PlanError) as caught:
        check_id("uid", value)
    assert not isinstance(caught.value, PlanTypeError)


@pytest.mark.parametrize(
    "value", ["0", "1", "01", "1:2", "", "-1", "root", b"0", None, True, False, 0.0, [0]], ids=repr
)
def test_id_of_wrong_type_is_refused(value: object) -> None:
    """Ids are never parsed: text, bools and floats are none."""
    with pytest.raises(PlanTypeError):
        check_id("uid", value)


@given(ids)
def test_id_in_range_is_itself(number: int) -> None:
    """Every id in range is taken as it is."""
    assert check_id("uid", number) == number


@given(st.integers().filter(lambda number: not 0 <= number <= MAX_ID))
def test_id_outside_is_refused(number: int) -> None:
    """Every int outside the range is refused."""
    with pytest.raises(PlanError):
        check_id("uid", number)


@pytest.mark.parametrize("value", [-1, 0o10000])
def test_mode_out_of_range_is_refused(value: int) -> None:
    """Permission bits are twelve."""
    with pytest.raises(PlanError):
        check_mode("mode", value)


@pytest.mark.parametrize("value", ["755", True, None, 7.0])
def test_mode_of_wrong_type_is_refused(value: object) -> None:
    """Permission bits are an int."""
    with pytest.raises(PlanTypeError):
        check_mode("mode", value)


@pytest.mark.parametrize("value", [0, 1, None, "yes", [], "False"])
def test_bool_of_wrong_type_is_refused(value: object) -> None:
    """What asks for a bool takes True and False only."""
    with pytest.raises(PlanTypeError):
        check_bool("flag", value)


# ---- text and paths ------------------------------------------------------


@pytest.mark.parametrize("text", ["\0", "a\0", "\0a", "a\0b"])
def test_text_with_nul_is_refused(text: str) -> None:
    """The kernel would see only what is before a NUL."""
    with pytest.raises(PlanError):
        check_text("name", text)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ud83d\ude00"], ids=ascii)
def test_text_that_cannot_be_encoded_is_refused(text: str) -> None:
    """A surrogate that stands for no byte cannot cross into the kernel."""
    with pytest.raises(PlanError):
        check_text("name", text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a", "/a"),
        (b"/a", "/a"),
        (Path("/a"), "/a"),
        ("a/../b", "a/../b"),
        (b"/\xff", "/\udcff"),
        ("/\udcff", "/\udcff"),
        ("/a b\n", "/a b\n"),
    ],
    ids=repr,
)
def test_path_is_kept(path: object, text: str) -> None:
    """A path of the host is kept as it is, as str; undecodable bytes become surrogates."""
    assert check_path("source", path) == text


@pytest.mark.parametrize("path", ["", b"", "/a\0b", b"/a\0b", "\0"], ids=repr)
def test_path_that_cannot_be_is_refused(path: object) -> None:
    """An empty path, or one with a NUL, is refused."""
    with pytest.raises(PlanError) as caught:
        check_path("source", path)
    assert not isinstance(caught.value, PlanTypeError)


@pytest.mark.parametrize("path", [None, 3, True, 1.5, ["/a"], bytearray(b"/a")], ids=repr)
def test_path_of_wrong_type_is_refused(path: object) -> None:
    """A file descriptor, a list or None is no path."""
    with pytest.raises(PlanTypeError):
        check_path("source", path)


@given(st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw))
def test_path_survives_the_way_to_the_kernel(raw: bytes) -> None:
    """Any bytes that can be a path reach the kernel unchanged."""
    assert os.fsencode(check_path("source", raw)) == raw


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/.", "/"),
        ("//a/./b", "/a/b"),
        ("/a/", "/a"),
        ("/a//b///", "/a/b"),
        ("/a/...", "/a/..."),
        ("/..a", "/..a"),
        (b"/\xff/", "/\udcff"),
        (Path("/a/b"), "/a/b"),
    ],
    ids=repr,
)
def test_target_is_normalised(path: object, normal: str) -> None:
    """A target loses ".", "//" and a trailing "/", and nothing else."""
    assert check_target("target", path) == normal


@pytest.mark.parametrize(
    "path", ["a", "./a", "..", "/..", "/../a", "/a/..", "/a/../b", "//..//", "~", ""]
)
def test_target_that_may_lead_elsewhere_is_refused(path: str) -> None:
    """A target is absolute, and without ".." components."""
    with pytest.raises(PlanError):
        check_target("target", path)


@given(untidy_targets)
def test_target_normalisation_is_idempotent(path: str) -> None:
    """To normalise twice is to normalise once."""
    once = check_target("target", path)
    assert check_target("target", once) == once


@given(targets)
def test_target_that_is_normal_is_itself(path: str) -> None:
    """A normalised path is taken as it is."""
    assert check_target("target", path) == path


@given(untidy_targets)
def test_target_keeps_its_components(path: str) -> None:
    """Normalising drops empty components and ".", and keeps the others in order."""
    kept = [part for part in path.split("/") if part not in ("", ".")]
    assert check_target("target", path).split("/")[1:] == (kept or [""])


# ---- environment ---------------------------------------------------------


@given(environments)
def test_environment_is_a_copy(environment: dict[str, str]) -> None:
    """An environment of str is taken as it is, and copied."""
    copy = check_environment("env", environment)
    assert copy == environment
    assert copy is not environment


def test_environment_takes_bytes() -> None:
    """Bytes are decoded as the file system's names are."""
    assert check_environment("env", {b"A": b"\xff"}) == {"A": "\udcff"}


@pytest.mark.parametrize(
    "environment",
    [{"": "x"}, {"A=B": "x"}, {"=": "x"}, {"A\0": "x"}, {"A": "\0"}, {b"A=": "x"}],
    ids=repr,
)
def test_environment_that_cannot_be_is_refused(environment: object) -> None:
    """A name is not empty and has no "="; neither part has a NUL."""
    with pytest.raises(PlanError) as caught:
        check_environment("env", environment)
    assert not isinstance(caught.value, PlanTypeError)


@pytest.mark.parametrize("environment", [{"\ud800": "x"}, {"A": "\ud800"}], ids=ascii)
def test_environment_that_cannot_be_encoded_is_refused(environment: object) -> None:
    """A surrogate that stands for no byte is refused before anything starts."""
    with pytest.raises(PlanError):
        check_environment("env", environment)


@pytest.mark.parametrize(
    "environment",
    [{"A": 1}, {1: "x"}, {"A": None}, {None: "x"}, [("A", "x")], "A=x", None, 1],
    ids=repr,
)
def test_environment_of_wrong_type_is_refused(environment: object) -> None:
    """An environment is a mapping of str or bytes."""
    with pytest.raises(PlanTypeError):
        check_environment("env", environment)


# ---- capabilities --------------------------------------------------------


@pytest.mark.parametrize("name", ["CAP_NET_RAW", "cap_net_raw", "net_raw", "NET_RAW"])
def test_capability_has_one_spelling(name: str) -> None:
    """A capability is stored under the name that capabilities(7) uses."""
    assert check_capabilities([name], CAPABILITIES) == ("CAP_NET_RAW",)


@given(st.lists(st.sampled_from(CAPABILITIES)))
def test_capabilities_are_a_sorted_set(names: list[str]) -> None:
    """Capabilities come out once each, in the order of their numbers."""
    assert check_capabilities(names, CAPABILITIES) == tuple(
        name for name in CAPABILITIES if name in names
    )


@pytest.mark.parametrize("names", [["CAP_EVERYTHING"], [""], ["all"], ["CAP_"], ["CAP_KILL\0"]])
def test_capability_that_is_none_is_refused(names: list[str]) -> None:
    """A name that capabilities(7) does not have is refused."""
    with pytest.raises(PlanError):
        check_capabilities(names, CAPABILITIES)


@pytest.mark.parametrize("names", ["CAP_KILL", None, 5, [5], [None], [b"CAP_KILL"]], ids=repr)
def test_capabilities_of_wrong_type_are_refused(names: object) -> None:
    """A single str is no sequence of names, and a number no name."""
    with pytest.raises(PlanTypeError):
        check_capabilities(names, CAPABILITIES)
