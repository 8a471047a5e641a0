"""The tests of CPython's test_subprocess that do not apply to a sandbox, and why."""

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

NOT_APPLICABLE: dict[str, str] = {
    **_ALWAYS,
    **(_SINCE_3_13 if sys.version_info >= (3, 13) else _BEFORE_3_13),
}
"""Those that the running Python has."""

DOCUMENTED: dict[str, str] = {**_ALWAYS, **_BEFORE_3_13, **_SINCE_3_13}
"""Those of any version."""
