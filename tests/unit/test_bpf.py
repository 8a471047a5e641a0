"""Short programs answer as long ones do, whatever these ask for."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox import UnsupportedError, _bpf

LOAD, AND, JUMP, RETURN = 0x20, 0x54, 0x05, 0x06
CONDITIONS = (0x15, 0x25, 0x35, 0x45)  # equal, greater, at least, bits set
WORDS = (0, 4, 16, 20, 24, 28)  # number, architecture, two arguments
VALUES = (0, 1, 2, 3, 4, 6, 8, 0x40000000, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
ANSWERS = (0x7FFF0000, 0x50001, 0x80000000)

FEW_WORDS = st.lists(st.sampled_from(VALUES), min_size=len(WORDS), max_size=len(WORDS))


def ask(program: bytes, words: list[int]) -> int:
    number, architecture, *halves = words
    if number >= 1 << 31:
        number -= 1 << 32  # it is an int
    args = [low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)]
    return _bpf.answer(program, architecture, number, *args)


def make(length: int, seed: int, answers: Sequence[int] = ANSWERS) -> bytes:
    """Return any program: it ends, since jumps lead onwards, and answers at the end at least."""
    chance = random.Random(seed)
    code = []
    for index in range(length):
        left = min(length - index - 1, 255)
        kind = chance.choice((LOAD, AND, JUMP, RETURN, *CONDITIONS * 2)) if left > 1 else RETURN
        true, false, value = 0, 0, chance.choice(VALUES)
        if kind == LOAD:
            value = chance.choice(WORDS)
        elif kind == JUMP:
            value = chance.randrange(left)
        elif kind == RETURN:
            value = chance.choice(answers)
        elif kind in CONDITIONS:
            true, false = (min(int(chance.expovariate(0.1)), left - 1) for _ in range(2))
        code.append(_bpf.INSTRUCTION.pack(kind, true, false, value))
    return b"".join(code)


@given(
    length=st.integers(1, 60),
    seed=st.integers(0),
    answers=st.dictionaries(
        st.sampled_from(VALUES),
        st.dictionaries(st.sampled_from(VALUES), st.sampled_from(ANSWERS), max_size=6),
        max_size=2,
    ),
    words=FEW_WORDS,
)
def test_any_program(
    length: int, seed: int, answers: dict[int, dict[int, int]], words: list[int]
) -> None:
    """And the answers of some calls are those that are given."""
    program = make(length, seed)
    expected = answers.get(words[1], {}).get(words[0], ask(program, words))
    assert ask(_bpf.joined([program], 0, answers), words) == expected


@given(st.lists(st.integers(0), max_size=4), FEW_WORDS)
def test_one_program_after_the_other(seeds: list[int], words: list[int]) -> None:
    """What one leaves to the next is asked of that."""
    programs = [make(20, seed, (*ANSWERS, _bpf.GO_ON)) for seed in seeds]
    answers = [ask(program, words) for program in programs]
    expected = next((answer for answer in answers if answer != _bpf.GO_ON), 5)
    assert ask(_bpf.joined(programs, 5, {}), words) == expected


@pytest.mark.parametrize("groups", [100, 600])
def test_far_jumps(groups: int) -> None:
    """Conditional jumps reach 255 instructions; what is farther is jumped to by steps."""
    code = [(LOAD, 0, 0, 16)]
    for value in range(groups):
        # Each value has an answer of its own, behind all the others' comparisons.
        code.append((0x15, 0, 1, value))
        code.append((JUMP, 0, 0, 2 * (groups - value - 1) + value + 1))
    code += [(RETURN, 0, 0, 0), *((RETURN, 0, 0, 0x50000 + value) for value in range(groups))]
    program = b"".join(_bpf.INSTRUCTION.pack(*instruction) for instruction in code)
    short = _bpf.joined([program], 0, {1: {5: 7}})
    for value in range(groups):
        assert _bpf.answer(short, 0, 5, value) == 0x50000 + value
        assert _bpf.answer(short, 1, 5, value) == 7
    assert _bpf.answer(short, 0, 0, groups) == 0


def test_many_answers_make_no_longer_program() -> None:
    """Each stands beside a test that leads to it: nothing is there that no way leads to."""
    code = [(LOAD, 0, 0, 16)]
    for value in range(1000):
        code += [(0x15, 0, 1, value), (RETURN, 0, 0, 0x50000 + value)]
    code.append((RETURN, 0, 0, 0x7FFF0000))
    program = b"".join(_bpf.INSTRUCTION.pack(*instruction) for instruction in code)
    short = _bpf.joined([program], 0, {})
    assert len(short) == len(program)
    for value in (0, 1, 500, 999, 1000):
        assert _bpf.answer(short, 0, 0, value) == _bpf.answer(program, 0, 0, value)


def test_what_is_the_same_is_there_once() -> None:
    """Bits that lead to one answer are asked for at once, and a word is loaded once."""
    code = []
    for bit in (1, 2, 8):
        code += [(LOAD, 0, 0, 16), (AND, 0, 0, bit), (0x15, 0, 1, bit), (RETURN, 0, 0, 1)]
    for value in (0, 16):
        code += [(LOAD, 0, 0, 16), (AND, 0, 0, 0xFFFFFFFF), (0x15, 0, 1, value), (RETURN, 0, 0, 1)]
    code += [(RETURN, 0, 0, 2)]
    program = b"".join(_bpf.INSTRUCTION.pack(*instruction) for instruction in code)
    short = _bpf.joined([program], 0, {})
    assert len(short) == 6 * _bpf.INSTRUCTION.size  # load, three tests, two answers


def test_pruning_ends() -> None:
    """What tests have in common could become as many parts as there are ways to them."""
    chance = random.Random(0)
    code = []
    for rule in range(26):
        for left in reversed(range(6)):  # of all arguments some bits, or else the next rule
            mask = chance.choice((0xFF, 0x1FF, 0x3FF, 0x7FF))
            code += [(LOAD, 0, 0, 16 + 8 * left), (AND, 0, 0, mask)]
            code.append((0x15, 0, 3 * left + 1, chance.randrange(4)))
        code.append((RETURN, 0, 0, 0x50000 + rule))
    code.append((RETURN, 0, 0, 0x7FFF0000))
    program = b"".join(_bpf.INSTRUCTION.pack(*instruction) for instruction in code)
    decisions = _bpf._Decisions()
    decision = decisions.read(program, 0)
    decisions.by_number(decision, {})
    assert len(decisions._nodes) < 2 * _bpf._PRUNING


@pytest.mark.parametrize("code", [0x1D, 0x44, 0x87, 0x16])
def test_unknown_instruction_is_told(code: int) -> None:
    """A comparison with X, an "or", a copy of X, an answer from A: none is taken for another."""
    instructions = [(LOAD, 0, 0, 16), (code, 0, 0, 1), (RETURN, 0, 0, 1)]
    program = b"".join(_bpf.INSTRUCTION.pack(*instruction) for instruction in instructions)
    with pytest.raises(UnsupportedError, match=f"{code:#x}"):
        _bpf.joined([program], 0, {})
