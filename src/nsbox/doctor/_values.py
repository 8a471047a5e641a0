"""What a diagnosis is made of."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..errors import CgroupError, SpawnError, UnsupportedError

NO_PROC = "mount -t proc proc /proc"
UNKNOWN = "not known; docs/errors.md tells what the step does, dmesg may tell more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing that was tried or read, and what came of it.

    Args:
        area: "sandbox", "kernel", "namespaces", "ids", "mounts", "cgroups",
            "sysctls" or "security".
        name: What it is, unique in its area: "user", "overlay", "memory", ...
        works: True or False; None for a fact that is neither good nor bad.
        detail: What was found.
        blocker: If it does not work: what failed, and why.
        fix: If it does not work: the command or the change that helps.
    """

    area: str
    name: str
    works: bool | None = None
    detail: str = ""
    blocker: str | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """
    All findings about a host, for the caller that asked.

    ``str()`` of it is the report that ``python -m nsbox.doctor`` prints.
    """

    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        from ._report import render

        return render(self)

    @property
    def healthy(self) -> bool:
        """Whether ``Sandbox()`` works here."""
        return self.find("sandbox", "default").works is True

    @property
    def blocked(self) -> tuple[Finding, ...]:
        """The findings that do not work, each with its blocker and its fix."""
        return tuple(finding for finding in self.findings if finding.works is False)

    def find(self, area: str, name: str) -> Finding:
        """
        Return one finding.

        Raises:
            KeyError: If there is none of that name in that area.
        """
        for finding in self.findings:
            if (finding.area, finding.name) == (area, name):
                return finding
        raise KeyError((area, name))

    def as_dict(self) -> dict[str, object]:
        """Return the same as dicts and lists, for json.dump."""
        return {"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}


def finding_of(area: str, name: str, error: Exception) -> Finding:
    """Return the finding that something does not work, from what nsbox raised about it."""
    blocker, fix = str(error), UNKNOWN
    if isinstance(error, (SpawnError, CgroupError)) and error.hint:
        blocker, fix = blocker.removesuffix(f" ({error.hint})"), error.hint
    elif isinstance(error, UnsupportedError) and ": " in blocker:
        blocker, _, fix = blocker.rpartition(": ")  # it ends with the remedy
    elif isinstance(error, OSError) and (error.filename or "").startswith("/proc/"):
        fix = NO_PROC
    return Finding(area=area, name=name, works=False, blocker=blocker, fix=fix)
