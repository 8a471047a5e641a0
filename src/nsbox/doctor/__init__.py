"""
What works on this host, and for what does not: the blocker, and what helps.

``nsbox.doctor()`` is a function, and ``python -m nsbox.doctor`` prints what it
returns. Both names can live because this is a package that ``nsbox`` imports
before it binds the function to the same name: an ``import nsbox.doctor`` later
finds the package imported, and leaves ``nsbox.doctor`` the function that it is.
"""

from ._values import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "doctor"]


def doctor() -> Diagnosis:
    """
    Try what nsbox builds on, and return what works here for this caller.

    Nothing is concluded from version numbers: namespaces are made, file systems
    are mounted in them, cgroups are made with limits and removed again. That
    happens in short-lived children of the C core, and nothing of it is left;
    what callers that were killed have left in cgroups is removed as well.
    Takes a tenth of a second, and a few more where there are cgroups to make.

    Needs no privilege; root and plain users get different answers.
    """
    from ._examine import examine  # its parts are not needed by programs that never ask

    return Diagnosis(tuple(examine()))
