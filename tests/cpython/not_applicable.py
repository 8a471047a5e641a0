"""The tests of CPython's that do not apply to a sandbox, and why."""

import sys

_PREEXEC = "preexec_fn is refused: between clone and exec no Python can run"
_MOCKED = "replaces a private function of subprocess that starts no sandboxed process"
_VFORK = "about the choice between fork and vfork, which the C core does not have"
_DESCRIPTORS = "leaves ten free descriptors; the set-up needs one for each mount"

# In all versions of Python.
_ALWAYS = {
    "POSIXProcessTestCase.test_close_fds_after_preexec": _PREEXEC,
    "POSIXProcessTestCase.test_exception_errpipe_bad_data": _MOCKED,
    "POSIXProcessTestCase.test_exception_errpipe_normal": _MOCKED,
    "POSIXProcessTestCase.test_preexec": _PREEXEC,
    "POSIXProcessTestCase.test_preexec_errpipe_does_not_double_close_pipes": _PREEXEC,
    "POSIXProcessTestCase.test_preexec_exception": _PREEXEC,
    "POSIXProcessTestCase.test_preexec_fork_failure": _PREEXEC,
    "POSIXProcessTestCase.test_preexec_gc_module_failure": _PREEXEC,
    "POSIXProcessTestCase.test_stopped": (
        "replaces os.waitpid by one that tells of a stopped child; a Process waits by its pidfd, "
        "and asks for ended children only"
    ),
    "POSIXProcessTestCase.test_surrogates_error_message": _PREEXEC,
    "ProcessTestCase.test_no_leaking": _DESCRIPTORS,
    "ProcessTestCaseNoPoll.test_no_leaking": _DESCRIPTORS,
}

# Where the test about vfork is, depends on the version.
_BEFORE_3_13 = {
    "ProcessTestCase.test__use_vfork": _VFORK,
    "ProcessTestCaseNoPoll.test__use_vfork": _VFORK,
}
_SINCE_3_13 = {"POSIXProcessTestCase.test__use_vfork": _VFORK}

SUBPROCESS: dict[str, str] = {
    **_ALWAYS,
    **(_SINCE_3_13 if sys.version_info >= (3, 13) else _BEFORE_3_13),
}
"""Those of subprocess that the running Python has."""

_PROTOCOL = "uses loop.subprocess_exec(), which makes a transport of asyncio's for a protocol"
_POPEN = "replaces subprocess.Popen, which an AsyncProcess does not call"

# asyncio has the same tests for each of its child watchers, which have nothing to do here.
_WATCHERS = ("Threaded", "Safe", "Fast", "Pidfd")
_EACH = {
    "Subprocess*WatcherTests.test_cancel_post_init": _PROTOCOL,
    "Subprocess*WatcherTests.test_close_dont_kill_finished": _PROTOCOL,
    "Subprocess*WatcherTests.test_close_kill_running": _PROTOCOL,
    "Subprocess*WatcherTests.test_pause_reading": "looks into a private transport of asyncio's",
    "Subprocess*WatcherTests.test_popen_error": _POPEN,
    "Subprocess*WatcherTests.test_popen_error_with_stdin_pipe": _POPEN,
}
_EACH_SINCE_3_12 = {"Subprocess*WatcherTests.test_subprocess_protocol_events": _PROTOCOL}
_OTHERS = {
    "GenericWatcherTests.test_create_subprocess_fails_with_inactive_watcher": (
        "about a child watcher that is not active; an AsyncProcess needs none"
    )
}

ASYNCIO: dict[str, str] = {
    **{
        name.replace("*", watcher): reason
        for watcher in _WATCHERS
        for name, reason in {
            **_EACH,
            **(_EACH_SINCE_3_12 if sys.version_info >= (3, 12) else {}),
        }.items()
    },
    **_OTHERS,
}
"""Those of asyncio that the running Python has."""

DOCUMENTED: dict[str, str] = {
    **_ALWAYS,
    **_BEFORE_3_13,
    **_SINCE_3_13,
    **_EACH,
    **_EACH_SINCE_3_12,
    **_OTHERS,
}
"""Those of any version."""
