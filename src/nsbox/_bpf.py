"""
Classic BPF programs as bytes: what they answer, and a short one that answers for several.

Pure. The instructions are those of linux/bpf_common.h, what they load is a
``struct seccomp_data``: the number of the call, the architecture, arguments.

The kernel checks, translates and compiles each program at its install, and asks it
for each call there is: so both its length and its paths count. :func:`joined` reads
programs as a graph of tests, in which equal parts are one (a decision diagram).
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from .errors import UnsupportedError

INSTRUCTION: Final = struct.Struct("=HBBI")
MOST: Final = 4096
"""BPF_MAXINSNS: what the kernel takes in one program."""
GO_ON: Final = 0x7FF00000  # SECCOMP_RET_TRACE
"""The answer of a program that leaves it to the next one: none else, for no profile has it."""
_NUMBER: Final = 0  # offsets in struct seccomp_data
_ARCHITECTURE: Final = 4

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_SET: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_CONDITIONS: Final = (_IF_EQUAL, _IF_GREATER, _IF_AT_LEAST, _IF_SET)
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_FARTHEST: Final = 255  # what a conditional jump reaches
_ALL: Final = 0xFFFFFFFF
_PRUNED: Final = 200  # tests: to prune as many takes a time that grows with their square, and
_PRUNING: Final = 4000  # parts made for that, as what is in common may become many of its own
_EXCEPTIONS: Final = 3  # single numbers that are asked for one after the other


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
            position += true if _holds(operation, accumulator, value) else false


def _holds(code: int, accumulator: int, value: int) -> bool:
    if code == _IF_EQUAL:
        return accumulator == value
    if code == _IF_GREATER:
        return accumulator > value
    if code == _IF_AT_LEAST:
        return accumulator >= value
    return bool(accumulator & value)


def joined(
    programs: Sequence[bytes], default: int, answers: Mapping[int, Mapping[int, int]]
) -> bytes:
    """
    Return a short program that asks some programs, one after the other, unless it is certain.

    It looks for architecture and number first, by binary searches in ranges, and then
    for what the answer depends on besides.

    Args:
        programs: They may load, mask, compare with constants, jump and return: no more. What one
            answers by GO_ON the next is asked, and
        default: this is the answer in the end.
        answers: AUDIT_ARCH_* -> number of a call -> SECCOMP_RET_*, whatever the programs say.

    Raises:
        UnsupportedError: If one does something else, of which this would make a wrong answer.
    """
    decisions = _Decisions()
    decision = decisions.answer(default)
    for program in reversed(programs):
        decision = decisions.read(program, decision)
    return decisions.program(decisions.by_number(decision, answers))


def _outcome(code: int, value: int, low: int, high: int) -> bool | None:
    """Return what comes of a comparison of any number from low to high; None: it depends."""
    if code == _IF_EQUAL:
        return None if low <= value <= high and low < high else low == value
    if code == _IF_SET:
        return None
    least, most = _holds(code, low, value), _holds(code, high, value)
    return least if least == most else None


def _range(code: int, value: int, holds: bool) -> tuple[int, int]:
    """Return the least and the highest number of which a comparison holds, or not."""
    if code == _IF_EQUAL and holds:
        return value, value
    if code == _IF_GREATER:
        return (value + 1, _ALL) if holds else (0, value)
    if code == _IF_AT_LEAST:
        return (value, _ALL) if holds else (0, value - 1)
    return 0, _ALL


class _Loaded(NamedTuple):
    """What a test looks at: a word of the data, and the bits of it."""

    word: int
    mask: int


class _Test(NamedTuple):
    loaded: _Loaded
    code: int
    value: int
    true: int
    false: int

    def compares(self, word: int) -> bool:
        """Tell whether the outcome is the same for a range of a word: no matter what else."""
        return self.loaded == (word, _ALL) and self.code != _IF_SET


class _Ranges(NamedTuple):
    """
    What a number from 0 to 2^32 - 1 leads to.

    Args:
        starts: Of each range the lowest number, ascending, the first 0.
        ways: Of each range.
    """

    starts: list[int]
    ways: list[int]

    def at(self, number: int) -> int:
        return self.ways[bisect_right(self.starts, number) - 1]

    def with_others(self, start: int, end: int, others: "_Ranges") -> "_Ranges":
        """Return these with some others in the place of those from start to before end."""
        before = bisect_left(self.starts, start)
        first, last = bisect_right(others.starts, start), bisect_left(others.starts, end)
        starts = [*self.starts[:before], start, *others.starts[first:last]]
        ways = [*self.ways[:before], others.at(start), *others.ways[first:last]]
        if end <= _ALL:
            behind = bisect_right(self.starts, end)
            starts += [end, *self.starts[behind:]]
            ways += [self.at(end), *self.ways[behind:]]
        return _Ranges(starts, ways)


class _Decisions:
    """
    A graph of tests and answers, each with a number; equal ones have the same.

    What a test leads to has a lower number than the test.
    """

    def __init__(self) -> None:
        self._nodes: list[_Test | int] = []
        self._words: list[frozenset[int]] = []  # of each, what it and all below it look at
        self._numbers: dict[_Test | int, int] = {}

    def answer(self, value: int) -> int:
        """Return the decision that is always this answer, SECCOMP_RET_*."""
        return self._add(value)

    def _add(self, node: _Test | int) -> int:
        if isinstance(node, _Test):
            if node.true == node.false:
                return node.true
            node = self._by_bits(node)
        number = self._numbers.setdefault(node, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
            words: frozenset[int] = frozenset()
            if isinstance(node, _Test):
                words = self._words[node.true] | self._words[node.false] | {node.loaded.word}
            self._words.append(words)
        return number

    def _by_bits(self, node: _Test) -> _Test:
        """Ask for bits that lead to the same at once, and without a mask."""
        word, mask = node.loaded
        if node.code == _IF_EQUAL and node.value == mask and not mask & (mask - 1):
            node = node._replace(loaded=_Loaded(word, _ALL), code=_IF_SET)
        other = self._nodes[node.false]
        if (
            node.code == _IF_SET
            and isinstance(other, _Test)
            and (other.loaded, other.code, other.true) == (node.loaded, _IF_SET, node.true)
        ):
            node = node._replace(value=node.value | other.value, false=other.false)
        return node

    def read(self, program: bytes, rest: int) -> int:
        """Return what a program decides, and behind GO_ON the rest."""
        code = list(INSTRUCTION.iter_unpack(program))
        # All jumps lead onwards. So one way there tells with what each instruction is met,
        met: list[set[_Loaded]] = [set() for _ in code]
        met[0].add(_Loaded(_NUMBER, 0))
        for position in range(len(code)):
            for loaded in met[position]:
                for target, then in _steps(code, position, loaded):
                    met[target].add(then)
        # and one way back, what it leads to.
        decided: dict[tuple[int, _Loaded], int] = {}
        for position in reversed(range(len(code))):
            operation, _, _, value = code[position]
            for loaded in met[position]:
                ways = [decided[way] for way in _steps(code, position, loaded)]
                if operation == _RETURN:
                    decision = rest if value == GO_ON else self._add(value)
                elif len(ways) == 1:
                    decision = ways[0]
                elif not loaded.mask:
                    decision = ways[not _holds(operation, 0, value)]
                else:
                    decision = self._add(_Test(loaded, operation, value, *ways))
                decided[position, loaded] = decision
        return decided[0, _Loaded(_NUMBER, 0)]

    def by_number(self, decision: int, answers: Mapping[int, Mapping[int, int]]) -> int:
        """Return a decision that asks for architecture and number first: see joined()."""

        def of_architecture(architecture: int, rest: int) -> int:
            known = answers.get(architecture, {})

            def of_number(number: int, rest: int) -> int:
                return self._add(known[number]) if number in known else self._pruned(rest)

            return self._by_range(_NUMBER, rest, known, of_number)

        return self._by_range(_ARCHITECTURE, decision, answers, of_architecture)

    def _by_range(
        self,
        word: int,
        decision: int,
        single: Collection[int],
        then: Callable[[int, int], int],
    ) -> int:
        """
        Return a decision that looks first for the range in which a word is.

        Within each range all comparisons come out the same; single numbers are ranges too.

        Args:
            then: Gets the lowest number of a range, and what is left of the decision there.
        """
        table = self._ranges(decision, word)
        ranges: list[tuple[int, int]] = []
        for low in sorted({*table.starts}.union(*((n, n + 1) for n in single)) - {_ALL + 1}):
            way = then(low, table.at(low))
            if not ranges or ranges[-1][1] != way:
                ranges.append((low, way))
        return self._search(_Loaded(word, _ALL), ranges, _ALL + 1)

    def _ranges(self, decision: int, word: int) -> "_Ranges":
        """
        Return what is left of a decision in each range of a word.

        From below upwards: each comparison of the word puts together what is left behind it if
        it holds, and if not. Of most that is one number, and all others.
        """
        order = self._below(decision)
        wanted = {decision}
        for number in order:
            node = self._nodes[number]
            if isinstance(node, int) or word not in self._words[number]:
                continue
            if number in wanted or node.compares(word):
                wanted |= {number, node.false}
                if not (node.compares(word) and node.code == _IF_EQUAL):
                    wanted.add(node.true)
        found: dict[int, _Ranges] = {}
        for number in reversed(order):
            if number in wanted:
                found[number] = self._ranges_of(number, word, found)
        return found[decision]

    def _ranges_of(self, number: int, word: int, below: Mapping[int, "_Ranges"]) -> "_Ranges":
        node = self._nodes[number]
        if isinstance(node, int) or word not in self._words[number]:
            return _Ranges([0], [number])
        false = below[node.false]
        if not node.compares(word):
            starts = sorted({*below[node.true].starts, *false.starts})
            pairs = [(below[node.true].at(start), false.at(start)) for start in starts]
            ways = [self._add(node._replace(true=true, false=other)) for true, other in pairs]
            return _Ranges(starts, ways)
        if node.code == _IF_EQUAL:
            value = node.value

            def way(number: int, test: _Test) -> int | None:
                return below[number].at(value) if test.compares(word) else None

            one = _Ranges([0], [self._decided(node.true, word, way)])
            return false.with_others(value, value + 1, one)
        first, _ = _range(node.code, node.value, holds=True)
        return false.with_others(first, _ALL + 1, below[node.true])

    def _pruned(self, decision: int) -> int:
        """
        Return a decision without the tests whose outcome is known by those before.

        What is in common may be so no more then: if that is larger, the decision as it is.
        """
        order = self._below(decision)
        if len(order) > _PRUNED:
            return decision
        done: dict[int, int] = {}
        end = len(self._nodes) + _PRUNING
        for number in reversed(order):
            if len(self._nodes) > end:
                return decision
            node = self._nodes[number]
            if isinstance(node, int):
                done[number] = number
                continue
            true = self._given(done[node.true], node, holds=True)
            false = self._given(done[node.false], node, holds=False)
            done[number] = self._add(node._replace(true=true, false=false))
        pruned = done[decision]
        return pruned if len(self._below(pruned)) <= len(order) else decision

    def _given(self, decision: int, test: _Test, *, holds: bool) -> int:
        """Return what is left of a decision behind a test that holds, or does not."""
        if test.loaded.word not in self._words[decision]:
            return decision
        low, high = _range(test.code, test.value, holds)

        def way(_: int, node: _Test) -> int | None:
            outcome = holds if node[:3] == test[:3] else None
            if outcome is None and node.loaded == test.loaded:
                outcome = _outcome(node.code, node.value, low, high)
            return None if outcome is None else node.true if outcome else node.false

        return self._decided(decision, test.loaded.word, way)

    def _decided(self, decision: int, word: int, way: Callable[[int, _Test], int | None]) -> int:
        """Return what is left of a decision if some tests of a word lead only one way."""
        done: dict[int, int] = {}
        waiting = [decision]
        while waiting:
            number = waiting[-1]
            node = self._nodes[number]
            if isinstance(node, int) or word not in self._words[number]:
                done[waiting.pop()] = number
                continue
            known = way(number, node) if node.loaded.word == word else None
            ways = [node.true, node.false] if known is None else [known]
            if missing := [number for number in ways if number not in done]:
                waiting.extend(missing)
                continue
            left = [done[number] for number in ways]
            if known is not None:
                number = left[0]
            elif left != ways:
                number = self._add(_Test(*node[:3], *left))
            done[waiting.pop()] = number
        return done[decision]

    def _search(self, loaded: _Loaded, ranges: Sequence[tuple[int, int]], end: int) -> int:
        """
        Return the decision that depends on the range in which a word is.

        Args:
            ranges: Of each the lowest number, ascending, and the decision.
            end: Where the last one ends.
        """
        ends = [start for start, _ in ranges[1:]] + [end]
        for decision in dict.fromkeys(way for _, way in ranges[:2]):
            others = [item for item in zip(ranges, ends, strict=True) if item[0][1] != decision]
            if len(others) <= _EXCEPTIONS and all(start + 1 == end for (start, _), end in others):
                for (start, way), _ in others:
                    decision = self._add(_Test(loaded, _IF_EQUAL, start, way, decision))
                return decision
        middle = len(ranges) // 2
        start = ranges[middle][0]
        true = self._search(loaded, ranges[middle:], end)
        false = self._search(loaded, ranges[:middle], start)
        return self._add(_Test(loaded, _IF_AT_LEAST, start, true, false))

    def program(self, decision: int) -> bytes:
        """Return a program that decides so."""
        answer = self._nodes[decision]
        if isinstance(answer, int):
            return INSTRUCTION.pack(_RETURN, 0, 0, answer)
        order = self._below(decision)
        cold = {decision}  # what is met by some way with something else loaded
        for node in (self._nodes[number] for number in order):
            if isinstance(node, _Test):
                cold.update(way for way in (node.true, node.false) if not self._follows(node, way))
        # From the end to the beginning, as jumps lead onwards: where each begins, from the end.
        code: list[bytes] = []
        places: dict[tuple[int, bool], int] = {}

        def is_far(way: tuple[int, bool]) -> bool:
            return way not in places or len(code) - places[way] > _FARTHEST

        for number in reversed(order):
            node = self._nodes[number]
            if isinstance(node, int):
                continue  # it stands where a test leads to it, and again where that is far
            ways = [(way, self._follows(node, way)) for way in (node.true, node.false)]
            while far := [way for way in ways if is_far(way)]:
                target = self._nodes[far[0][0]]
                if isinstance(target, int):
                    code.append(INSTRUCTION.pack(_RETURN, 0, 0, target))
                else:
                    code.append(INSTRUCTION.pack(_JUMP, 0, 0, len(code) - places[far[0]]))
                places[far[0]] = len(code)
            true, false = (len(code) - places[way] for way in ways)
            code.append(INSTRUCTION.pack(node.code, true, false, node.value))
            places[number, True] = len(code)
            if number in cold:
                if node.loaded.mask != _ALL:
                    code.append(INSTRUCTION.pack(_AND, 0, 0, node.loaded.mask))
                code.append(INSTRUCTION.pack(_LOAD, 0, 0, node.loaded.word))
                places[number, False] = len(code)
        return b"".join(reversed(code))

    def _follows(self, node: _Test, way: int) -> bool:
        """Tell whether the next test looks at what is loaded for this one."""
        target = self._nodes[way]
        return isinstance(target, _Test) and target.loaded == node.loaded

    def _below(self, decision: int) -> list[int]:
        """Return all that a decision may lead to, and itself, each before what it leads to."""
        order: list[int] = []
        seen: set[int] = set()
        waiting = [decision]
        while waiting:
            number = waiting.pop()
            if number < 0:
                order.append(~number)
            elif number not in seen:
                seen.add(number)
                waiting.append(~number)
                node = self._nodes[number]
                if isinstance(node, _Test):
                    # The last one is the next in the program: a jump less.
                    waiting.extend((node.false, node.true))
        return order[::-1]


def _steps(
    code: Sequence[tuple[int, int, int, int]], position: int, loaded: _Loaded
) -> list[tuple[int, _Loaded]]:
    """Return where an instruction leads to, if true and if false, and with what loaded."""
    operation, true, false, value = code[position]
    onwards = position + 1
    if operation == _RETURN:
        return []
    if operation == _JUMP:
        return [(onwards + value, loaded)]
    if operation == _LOAD:
        return [(onwards, _Loaded(value, _ALL))]
    if operation == _AND:
        return [(onwards, loaded._replace(mask=loaded.mask & value))]
    if operation not in _CONDITIONS:
        raise UnsupportedError(
            f"libseccomp made an instruction that nsbox does not know: {operation:#x}"
        )
    return [(onwards + true, loaded), (onwards + false, loaded)]
