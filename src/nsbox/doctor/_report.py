"""The diagnosis as text: for people, in colours where a terminal can show them."""

import textwrap
from itertools import groupby
from typing import Final

from ._values import Diagnosis, Finding

_WIDTH: Final = 92
_MARKS: Final = {True: "yes", False: "no", None: "-"}
# Select Graphic Rendition, ECMA-48 8.3.117.
_BOLD: Final = "1"
_COLORS: Final = {True: "32", False: "31", None: "2"}


def render(diagnosis: Diagnosis, *, width: int = _WIDTH, color: bool = False) -> str:
    """
    Return the report.

    Args:
        diagnosis: What to report.
        width: Columns to fill.
        color: Use ANSI escape sequences.
    """
    lines = []
    for area, group in groupby(diagnosis, key=lambda finding: finding.area):
        findings = list(group)
        names = max(len(finding.name) for finding in findings)
        lines.append(_paint(area, _BOLD, color))
        for finding in findings:
            mark = _paint(f"{_MARKS[finding.works]:>5}", _COLORS[finding.works], color)
            first, *rest = _text(finding, width - names - 9) or [""]
            lines.append(f"{mark}  {finding.name:<{names}}  {first}".rstrip())
            lines += [" " * (names + 9) + line for line in rest]
        lines.append("")
    lines.append(_verdict(diagnosis))
    return "\n".join(lines)


def _text(finding: Finding, width: int) -> list[str]:
    parts = [finding.detail, finding.blocker]
    if finding.fix:
        parts.append(f"fix: {finding.fix}")
    return [line for part in parts if part for line in textwrap.wrap(part, max(width, 20))]


def _verdict(diagnosis: Diagnosis) -> str:
    if not diagnosis.healthy:
        return "A default Sandbox cannot be made here."
    if diagnosis.blocked:
        return "A default Sandbox can be made here; not everything else works."
    return "Everything works here."


def _paint(text: str, rendition: str, color: bool) -> str:
    return f"\x1b[{rendition}m{text}\x1b[0m" if color else text
