"""
Every system call of a set-up, made to fail: a typed error that names it, and nothing left.

A workload runs once, and each call that the caller and the processes of the set-up
make is noted. Then it runs once for each of them, and that one fails: see supervisor.py.
"""

import errno
import gc
import os
import random
import sys
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import pytest
from calls import (
    CANNOT_FAIL,
    ERRORS,
    FROM_ROOT,
    NO_CALL,
    PLACES,
    STEPS,
    TRANSLATED,
    dispensable,
    faults_of,
    harmless,
    librarys,
    steps_of,
)
from supervisor import CALLER, KILLED, THREAD, UNREADABLE, Call, Fault, Gate, supervised
from workloads import TRUE, WORKLOADS, Belongings, Workload

from nsbox import CgroupError, NsboxError, Sandbox, Step, UnsupportedError
from nsbox._constants import SHORTAGE

ASKED_ABOUT = 100
"""How many calls of a workload make a group of them."""

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]


class Outcome(NamedTuple):
    """
    What came of a fault.

    Args:
        fault: Which.
        fired: The call was made.
        error: What was raised; "" if nothing.
        step: Of that error.
        code: Its errno.
        left: What was there afterwards, and had not been before; "" if nothing.
    """

    fault: Fault
    fired: bool
    error: str
    typed: bool
    step: str
    code: int
    left: str


def attempt(gate: Gate, workload: Workload, fault: Fault, belongings: Belongings) -> Outcome:
    raised: BaseException | None = None
    workload.before()
    gate.arm(fault)
    try:
        workload.act()
    except BaseException as error:  # of pytest.raises(), too
        raised = error
    fired = gate.rest()
    text, code = "" if raised is None else repr(raised), getattr(raised, "errno", None) or 0
    step = getattr(raised, "step", "")
    typed = isinstance(raised, NsboxError)
    del raised  # and with it the frames that hold what is to be collected
    return Outcome(fault, fired, text, typed, step, code, ", ".join(belongings.left()))


def warm_up(workload: Workload) -> Belongings:
    """Do all that is done but once."""
    sys.unraisablehook = lambda _: None
    belongings = Belongings(workload)
    gc.collect()
    gc.freeze()
    return belongings


def calls_of(workload: Workload) -> list[Call]:
    """Return the calls of a workload."""

    def watch(gate: Gate, _: Belongings) -> None:
        workload.before()
        gate.watch()
        workload.act()
        gate.rest()

    return supervised(watch, lambda: warm_up(workload))[1]


def complaint(
    call: Call, outcome: Outcome, steps: Collection[str], *, may_succeed: bool, plain: bool
) -> str | None:
    """
    Return what is wrong with an outcome, or None.

    Args:
        call: What has failed.
        outcome: What came of it.
        steps: Which an error of ours may have.
        may_succeed: That need not be an error.
        plain: If it is one, it may be a plain OSError.
    """
    if outcome.left:
        return f"left: {outcome.left} ({outcome.error})"
    # What openat2(2) says EAGAIN to is a path below a root; of an UNREADABLE one the step tells.
    below = call.text[:1] != "/" and (call.text != UNREADABLE or outcome.step not in FROM_ROOT)
    try_again = outcome.fault.error == errno.EINTR or (
        outcome.fault.error == errno.EAGAIN and call.name == "openat2" and below
    )
    if not outcome.fired:
        return None  # a thread makes more or fewer calls each time
    if not outcome.error:
        return None if try_again or may_succeed else "no error"
    if try_again and not may_succeed:
        return f"not tried again: {outcome.error}"
    if not outcome.typed:
        return None if plain else f"not typed: {outcome.error}"
    unsure = call.text == UNREADABLE or outcome.fault.lasting
    if outcome.step and outcome.step not in steps and not unsure:
        return f"another step: {outcome.error}"
    if outcome.code not in (outcome.fault.error, 0) and outcome.step not in TRANSLATED:
        return f"another errno: {outcome.error}"
    return None


def outcomes_of(workload: Workload, faults: Collection[Fault]) -> list[Outcome]:
    """Run a workload once with each of some faults."""

    def attempt_all(gate: Gate, belongings: Belongings) -> list[Outcome]:
        return [attempt(gate, workload, fault, belongings) for fault in faults]

    return supervised(attempt_all, lambda: warm_up(workload), {fault.name for fault in faults})[0]


def together(calls: Collection[Call]) -> list[set[str]]:
    """
    Return the names of calls in groups: the faults of each are tried by one process.

    It asks about no other calls, and so is fast if these are few; but to begin one takes time, too.
    """
    groups: list[set[str]] = []
    size = ASKED_ABOUT
    for name, count in sorted(
        Counter(call.name for call in calls).items(), key=lambda item: item[1]
    ):
        if size + count > ASKED_ABOUT:
            groups.append(set())
            size = 0
        groups[-1].add(name)
        size += count
    return groups


def test_every_step_is_known() -> None:
    """The table says of every step which call it is."""
    known = {step for _, steps in STEPS for step in steps.split()}
    assert known ^ {*Step} == NO_CALL


@pytest.mark.long
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_every_call_may_fail(workload: Workload, request: pytest.FixtureRequest) -> None:
    """Whichever call fails: an error with its step and errno, or success, and nothing is left."""
    workload.require(request)
    calls = [call for call in calls_of(workload) if call.name not in CANNOT_FAIL]
    unknown = {call.name for call in calls} - ERRORS.keys()
    assert not unknown, f"calls whose errors nobody has listed: {unknown}"
    cases = faults_of(calls, long=request.config.getoption("--long"))
    forgiven, spared, pipes = harmless(calls), dispensable(calls), librarys(calls)
    print(f"{workload}: {len(calls)} calls, {len(cases)} faults")
    complaints = []
    for names in together(calls):
        for outcome in outcomes_of(workload, [fault for fault in cases if fault.name in names]):
            call = cases[outcome.fault]
            short = outcome.fault.error in SHORTAGE
            may_succeed = call in forgiven or (call in spared and not short)
            what = complaint(
                call,
                outcome,
                steps_of(call, sure=not workload.background),
                may_succeed=may_succeed or workload.background,
                plain=call in pipes,
            )
            if what is not None:
                complaints.append(f"{call}: {outcome.fault}: {what}")
    assert complaints == [], "\n" + "\n".join(complaints)


def stay(gate: Gate, fault: Fault | None) -> tuple[bool, str | None, str]:
    """Open a sandbox under a fault, freeze it; return if that came, its words, and freeze()'s."""
    box = Sandbox()
    if fault is None:
        gate.watch()
    else:
        gate.arm(fault)
    try:
        live = box.open()
    except CgroupError as error:
        return gate.rest(), str(error), ""
    fired = gate.rest()
    with live:
        assert live.run(TRUE).returncode == 0
        try:
            live.freeze()
        except UnsupportedError as error:
            return fired, None, str(error)
    return fired, None, ""


@pytest.mark.parametrize("path", PLACES)
def test_a_sandbox_that_cannot_be_frozen(path: str) -> None:
    """Where no cgroup can be looked for, all else works; who is short of descriptors hears that."""
    _, calls = supervised(lambda gate, _: stay(gate, None), lambda: None)
    (call,) = [call for call in calls if str(call) == f"caller openat {path}"]

    def outcome(code: int) -> tuple[bool, str | None, str]:
        fault = Fault(call.role, call.name, call.occurrence, code, lasting=False)
        return supervised(lambda gate, _: stay(gate, fault), lambda: None, {call.name})[0]

    for code in (errno.EPERM, errno.EACCES):
        fired, error, frozen = outcome(code)
        assert fired
        assert error is None
        assert f"needs a cgroup: cgroup: {os.strerror(code)}: {path!r}" in frozen
    fired, error, _ = outcome(errno.EMFILE)
    assert fired
    assert error is not None
    assert f"{os.strerror(errno.EMFILE)}: {path!r}" in error
    assert "RLIMIT_NOFILE" in error


@pytest.mark.long
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_whoever_is_killed(workload: Workload, request: pytest.FixtureRequest) -> None:
    """Launcher, child, init: killed at any call, that is an error or a fresh sandbox, no hang."""
    workload.require(request)
    calls = [call for call in calls_of(workload) if call.role not in (CALLER, THREAD)]
    long, seed = request.config.getoption("--long"), request.config.getoption("--seed")
    chosen = random.Random(f"{workload} {seed}")
    # Right before its exec, whoever waits for that takes it for done.
    executing = [call for call in calls if call.name == "execve"]
    faults = [
        Fault(call.role, call.name, call.occurrence, KILLED, lasting=False)
        for call in (calls if long else executing + chosen.sample(calls, min(len(calls), 4)))
    ]

    def may_be_untyped(outcome: Outcome) -> bool:
        # A payload without its program has not done what the workload expects of it.
        return workload.pipes or outcome.fault.name == "execve"

    complaints = [
        f"{outcome.fault}: left: {outcome.left} ({outcome.error})"
        for outcome in outcomes_of(workload, faults)
        if outcome.left or (outcome.error and not outcome.typed and not may_be_untyped(outcome))
    ]
    assert complaints == [], f"seed {seed}:\n" + "\n".join(complaints)
