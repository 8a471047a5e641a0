"""
Classic BPF programs as bytes: joining and asking them, a short way to the frequent answers.

Pure. The instructions are those of linux/bpf_common.h, what they load is a
``struct seccomp_data``: the number of the call, the architecture, arguments.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

INSTRUCTION: Final = struct.Struct("=HBBI")
MOST: Final = 4096
"""BPF_MAXINSNS: what the kernel takes in one program."""
LIMIT: Final = 512
"""Numbers of calls are below it, as far as anybody knows; x32 and negative ones are not."""

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_SET: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER: Final = 0  # offsets in struct seccomp_data
_ARCHITECTURE: Final = 4
_FARTHEST: Final = 255  # what a conditional jump reaches


def chain(first: bytes, second: bytes, allowed: int) -> bytes:
    """Return one program from two: what the first answers by ``allowed`` goes on to the second."""
    length = len(first) // INSTRUCTION.size
    joined = []
    for index, (code, true, false, value) in enumerate(INSTRUCTION.iter_unpack(first)):
        if code == _RETURN and value == allowed:
            code, value = _JUMP, length - index - 1
        joined.append(INSTRUCTION.pack(code, true, false, value))
    return b"".join(joined) + second


def answer(program: bytes, architecture: int, number: int, *args: int) -> int:
    """Run a program over a ``struct seccomp_data``, as linux/filter.h says; return its answer."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *args, *[0] * (6 - len(args)))
    code = list(INSTRUCTION.iter_unpack(program))
    accumulator, position = 0, 0
    while True:
        operation, true, false, value = code[position]
        position += 1
        if operation == _LOAD:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == _AND:
            accumulator &= value
        elif operation == _JUMP:
            position += value
        elif operation == _RETURN:
            return int(value)
        else:
            holds = {
                _IF_EQUAL: accumulator == value,
                _IF_GREATER: accumulator > value,
                _IF_AT_LEAST: accumulator >= value,
                _IF_SET: bool(accumulator & value),
            }[operation]
            position += true if holds else false


class _Node(NamedTuple):
    """An instruction of the tree, as a target of jumps; other targets are answers."""

    place: int


_Target = _Node | int | None


def tree(architecture: int, answers: Mapping[int, int | None], default: int) -> bytes | None:
    """
    Return a program to stand before another, which answers most calls by their number.

    Neighbours with one answer are one range, and a binary search finds it. The
    answer None, another architecture, and numbers from LIMIT on go to the program
    behind. None if the tree is too large for its jumps.

    Args:
        architecture: AUDIT_ARCH_* for which the numbers hold.
        answers: Number of a call -> SECCOMP_RET_*, or None if it is not decided here.
        default: The answer to other numbers.
    """
    starts: list[tuple[int, int | None]] = []
    for number in range(LIMIT):
        answer = answers.get(number, default)
        if not starts or starts[-1][1] != answer:
            starts.append((number, answer))
    nodes: list[tuple[int, _Target, _Target]] = []
    root = _search(starts, nodes)
    leaves: list[int | None] = [None, *dict.fromkeys(a for _, a in starts if a is not None)]
    code = [(_IF_AT_LEAST, number, high, low) for number, high, low in nodes]
    head = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_IF_EQUAL, architecture, _HERE, None),
        (_LOAD, _NUMBER, None, None),
        (_IF_AT_LEAST, LIMIT, None, root),
    ]
    return _assemble([*head, *code], len(head), leaves)


_HERE: Final = _Node(-2)  # the third instruction, when the first node is the fifth


def _search(
    starts: Sequence[tuple[int, int | None]], nodes: list[tuple[int, _Target, _Target]]
) -> _Target:
    """Add the comparisons that tell these ranges from each other; return where to begin."""
    if len(starts) == 1:
        return starts[0][1]
    index, middle = len(nodes), len(starts) // 2
    nodes.append((0, None, None))
    low = _search(starts[:middle], nodes)
    high = _search(starts[middle:], nodes)
    nodes[index] = (starts[middle][0], high, low)
    return _Node(index)


def _assemble(
    code: Sequence[tuple[int, int, _Target, _Target]], head: int, leaves: Sequence[int | None]
) -> bytes | None:
    """Resolve the targets; the leaves follow the code, and what is not decided is behind them."""
    packed = []
    for position, (operation, value, true, false) in enumerate(code):
        offsets = [0, 0]
        if operation != _LOAD:
            places = [
                head + target.place
                if isinstance(target, _Node)
                else len(code) + leaves.index(target)
                for target in (true, false)
            ]
            offsets = [place - position - 1 for place in places]
        if max(offsets) > _FARTHEST:
            return None
        packed.append(INSTRUCTION.pack(operation, *offsets, value))
    for index, answer in enumerate(leaves):
        if answer is None:
            packed.append(INSTRUCTION.pack(_JUMP, 0, 0, len(leaves) - index - 1))
        else:
            packed.append(INSTRUCTION.pack(_RETURN, 0, 0, answer))
    return b"".join(packed)
