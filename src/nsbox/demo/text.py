"""
Show the facts as text: boxes and colours on a terminal, plain ASCII in a pipe.

Explains what the facts mean. Every number and name comes from them; a sentence
that holds only for some hosts is chosen by what they say.
"""

import signal
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .facts import Facts, Host, Inside, Killed, Listing, Namespaces, Outside, RawClone, Twin, View

_MAX_WIDTH: Final = 92
_MIN_WIDTH: Final = 64

# Select Graphic Rendition, ECMA-48 8.3.117.
_BOLD: Final = "1"
_DIM: Final = "2"
_TITLE: Final = "1;36"
_INSIDE: Final = "32"
_HOST: Final = "94"
_RAW: Final = "33"

_WHAT: Final = {
    "pid": "processes",
    "uts": "host name",
    "mnt": "mounts",
    "net": "network devices",
    "ipc": "IPC objects",
    "user": "shell's user",
    "cgroup": "cgroup path",
    "time": "boot clocks",
}


@dataclass(frozen=True, slots=True)
class Style:
    """
    What the output can show.

    Args:
        width: Columns to fill.
        color: ANSI escape sequences may be used.
        unicode: Characters for boxes may be used.
    """

    width: int = 80
    color: bool = False
    unicode: bool = False

    @classmethod
    def for_terminal(cls, columns: int, *, color: bool, unicode: bool) -> "Style":
        """Return the style for a terminal of so many columns."""
        return cls(max(_MIN_WIDTH, min(columns, _MAX_WIDTH)), color, unicode)


Cell = tuple[str, str]
"""A text, and the rendition to show it in; "" is none."""


class Page:
    """Collects lines of output in a style, with an empty line between blocks."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._lines: list[str] = []
        self._separate = False

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"

    def title(self, title: str, subtitle: str) -> None:
        inner = self._style.width - 4
        corners = "╭─╮│╰╯" if self._style.unicode else "+-+|++"
        edge = corners[1] * (inner + 2)
        self._add(self._paint(corners[0] + edge + corners[2], _TITLE))
        side = self._paint(corners[3], _TITLE)
        texts = [(title, _BOLD), *((line, "") for line in textwrap.wrap(subtitle, inner))]
        for text, rendition in texts:
            self._add(f"{side} {self._paint(text.ljust(inner), rendition)} {side}")
        self._add(self._paint(corners[4] + edge + corners[5], _TITLE))
        self._separate = True

    def heading(self, text: str) -> None:
        rule = "─" if self._style.unicode else "-"
        start = f"{rule * 2} {text} "
        self._begin()
        self._add(self._paint(start + rule * (self._style.width - len(start)), _TITLE))
        self._separate = False

    def prose(self, text: str) -> None:
        self._begin()
        self._lines += textwrap.wrap(text, self._style.width, break_on_hyphens=False)

    def code(self, text: str) -> None:
        self._begin()
        self._add("    " + self._paint(text, _BOLD))

    def transcript(
        self, prompt: str, rendition: str, *exchanges: tuple[str, Sequence[str]]
    ) -> None:
        """Show commands, each with what it printed."""
        self._begin()
        bar = self._paint("│" if self._style.unicode else "|", rendition)
        for command, output in exchanges:
            prefix = f"{prompt} " if prompt else ""
            room = self._style.width - 4 - len(prefix)
            command = self._paint(self._cut(command, room), _BOLD)
            self._add(f"  {bar} {self._paint(prefix, rendition)}{command}")
            for line in output:
                self._add(f"  {bar} {self._cut(line, self._style.width - 4)}".rstrip())

    def table(self, header: Sequence[Cell], rows: Sequence[Sequence[Cell]]) -> None:
        """Show columns, as wide as they need to be, the widest cut where that is too much."""
        self._begin()
        columns = list(zip(header, *rows, strict=True))
        widths = [max(len(text) for text, _ in column) for column in columns]
        while sum(widths) + 2 * len(widths) > self._style.width:
            widths[widths.index(max(widths))] -= 1
        rule = "─" if self._style.unicode else "-"
        self._row(header, widths)
        self._add("  " + self._paint("  ".join(rule * width for width in widths), _DIM))
        for row in rows:
            self._row(row, widths)

    def _row(self, cells: Sequence[Cell], widths: Sequence[int]) -> None:
        line = ""
        for (text, rendition), width in zip(cells, widths, strict=True):
            text = self._cut(text, width)
            line += "  " + self._paint(text, rendition) + " " * (width - len(text))
        self._add(line.rstrip())

    def _begin(self) -> None:
        """Start a block."""
        if self._separate:
            self._add("")
        self._separate = True

    def _add(self, line: str) -> None:
        self._lines.append(line)

    def _paint(self, text: str, rendition: str) -> str:
        if not (self._style.color and rendition and text):
            return text
        return f"\x1b[{rendition}m{text}\x1b[0m"

    def _cut(self, text: str, width: int) -> str:
        """Return a text from the system without control characters, in so many columns."""
        text = "".join(char if char.isprintable() else "?" for char in text.expandtabs())
        if not self._style.unicode:
            text = text.encode("ascii", "replace").decode()
        if len(text) <= width:
            return text
        dots = "…" if self._style.unicode else "..."
        return text[: width - len(dots)] + dots


def render(facts: Facts, style: Style) -> str:
    """Return the whole demonstration as text."""
    page = Page(style)
    _introduction(page, facts.host)
    _section_inside(page, facts.inside)
    _section_outside(page, facts.outside, facts.host)
    _section_several(page, facts.several)
    _section_killed(page, facts.killed, facts.host)
    _section_namespaces(page, facts.namespaces)
    _section_raw_clone(page, facts.raw_clone, facts.namespaces, facts.host)
    _conclusion(page)
    return str(page)


# ---- sections ----------------------------------------------------------


def _introduction(page: Page, host: Host) -> None:
    page.title(
        "A container is just a special process",
        f"Live on {host.hostname}, Linux {host.kernel}, as {_who(host)}. "
        "Nothing below is canned: real processes, looked at while they ran.",
    )


def _section_inside(page: Page, inside: Inside) -> None:
    page.heading("1. Inside, /bin/sh is PID 1")
    page.prose(
        "Start a shell in namespaces of its own, and ask it who it is and who else is there:"
    )
    page.code('process = nsbox.Sandbox().spawn(["/bin/sh"])')
    page.transcript("inside #", _INSIDE, ("echo $$", [str(inside.pid)]), _listing(inside.ps))
    page.prose(
        f"That is its whole world: itself, and the ps that it started. The host had "
        f"{inside.host_processes} processes at that moment, and it sees none of them."
    )


def _section_outside(page: Page, outside: Outside, host: Host) -> None:
    page.heading("2. Outside, the same shell is an ordinary process")
    directory = f"/proc/{outside.pid}"
    nspid = "  ".join(str(number) for number in outside.nspid)
    page.prose("No virtual machine, no daemon. This is that very shell in the host's /proc:")
    page.transcript(
        "host:",
        _HOST,
        (f"{directory}/cmdline", [outside.command]),
        (f"{directory}/status", [f"PPid:   {outside.parent}", f"NSpid:  {nspid}"]),
    )
    parent = " Its parent is this demonstration." if outside.parent == host.pid else ""
    page.prose(
        f"NSpid has it in one line: one process, two numbers, {outside.nspid[0]} out here and "
        f"{outside.nspid[-1]} in there.{parent}"
    )


def _section_several(page: Page, several: Sequence[Twin]) -> None:
    page.heading("3. Everyone can be PID 1")
    page.prose(
        "A pid means something only within its pid namespace. "
        f"Here are {len(several)} sandboxes, all alive at once, each asked for its own:"
    )
    page.table(
        [("pid on the host", _HOST), ("inside: echo $$", _INSIDE), ("pid namespace", _DIM)],
        [
            [(str(twin.pid_outside), ""), (str(twin.pid_inside), ""), (str(twin.pid_namespace), "")]
            for twin in several
        ],
    )


def _section_killed(page: Page, killed: Killed, host: Host) -> None:
    page.heading("4. Kill that one process, and the container is gone")
    page.prose(
        "Another sandbox, with some life in it. From inside, not even kill -9 can end its PID 1: "
        "the kernel shields a PID 1 from the processes of its own namespace."
    )
    page.transcript(
        "inside #",
        _INSIDE,
        _listing(killed.ps),
        ("kill -9 1; echo 'still here'", [killed.after_kill_inside]),
    )
    page.prose("From outside it is a process like any other:")
    others = " ".join(str(pid) for pid in killed.others)
    page.transcript(
        "host #" if host.uid == 0 else "host $",
        _HOST,
        (f"kill -9 {killed.pid}", [f"{killed.pid}, PID 1 inside: {_ending(killed.returncode)}"]),
    )
    gone = "all gone" if killed.ended == killed.others else f"gone: {list(killed.ended)}"
    page.prose(
        f"And what it had started, {others} on the host: {gone}. When a PID 1 ends, the kernel "
        "kills everything else in its pid namespace. `docker kill` comes down to this."
    )


def _section_namespaces(page: Page, namespaces: Namespaces) -> None:
    page.heading("5. Not only pids: every kind of namespace")
    page.prose(
        "Each kind of namespace changes the view of one thing. A shell on the host and the "
        "shell of section 1 were asked the same questions:"
    )
    values = _values(namespaces)
    rows = []
    order = list(_WHAT)
    for pair in sorted(namespaces.pairs, key=lambda pair: order.index(pair.kind)):
        rendition = _DIM if pair.outside == pair.inside else ""
        outside, inside = values[pair.kind]
        rows.append(
            [
                (pair.kind, _BOLD),
                (_WHAT[pair.kind], ""),
                (outside, rendition),
                (inside, rendition),
                (str(pair.outside), _DIM),
                (str(pair.inside), _DIM),
            ]
        )
    page.table(
        [
            ("kind", _BOLD),
            ("what it covers", _BOLD),
            ("host", _HOST),
            ("inside", _INSIDE),
            ("host inode", _HOST),
            ("inner inode", _INSIDE),
        ],
        rows,
    )
    _notes(page, namespaces)


def _values(namespaces: Namespaces) -> dict[str, tuple[str, str]]:
    """Return what the host and the sandbox say about each kind."""
    outside, inside = namespaces.outside, namespaces.inside
    shared = {pair.kind for pair in namespaces.pairs if pair.outside == pair.inside}
    return {
        "pid": (str(outside.processes), str(inside.processes)),
        "uts": (outside.hostname, inside.hostname),
        "mnt": (str(outside.mounts), str(inside.mounts)),
        "net": (_devices(outside), _devices(inside)),
        "ipc": (_optional(outside.ipc_objects), _optional(inside.ipc_objects)),
        "user": (_shell_outside(namespaces), _uid(inside.uid)),
        "cgroup": (_optional(outside.cgroup), _optional(inside.cgroup)),
        "time": ("shared", "shared") if "time" in shared else ("the host's", "its own"),
    }


def _who(host: Host) -> str:
    """Return who runs this; not every user id has a name."""
    named = host.user != str(host.uid)
    return f"{host.user} (user id {host.uid})" if named else f"user id {host.uid}"


def _shell_outside(namespaces: Namespaces) -> str:
    uid, name = str(namespaces.uid_outside), namespaces.user_outside
    return uid if name == uid else f"{uid} ({name})"


def _notes(page: Page, namespaces: Namespaces) -> None:
    inside = _uid(namespaces.inside.uid)
    text = (
        "The inode numbers are those of `ls -l /proc/PID/ns`: the same number means the same "
        f"namespace. The shell's user is {inside} inside, and to the host "
        f"{_shell_outside(namespaces)}, with that user's rights only."
    )
    if namespaces.message_queue:
        text += " One of the host's IPC objects, a message queue, was made for this table."
    page.prose(text)


def _section_raw_clone(page: Page, raw: RawClone, namespaces: Namespaces, host: Host) -> None:
    flags = " | ".join(raw.flags)
    page.heading(f"6. What clone({flags}) alone gives you")
    page.prose(
        "At the bottom of it all is one system call. Here it is bare, with nothing done before "
        "or after:"
    )
    page.code(f'nsbox.lowlevel.clone({flags}, "/bin/sh", ["/bin/sh"])')
    command, lines = _listing(raw.ps)
    left_out = raw.ps.count - len(raw.ps.lines)
    more = [f"({left_out} more)"] if left_out else []
    page.transcript(
        "clone #",
        _RAW,
        ("echo $$", [str(raw.view.pid)]),
        ("read -r pid rest </proc/self/stat; echo $pid", [str(raw.pid_in_proc)]),
        (command, [*lines, *more]),
    )
    page.prose(
        f"It is PID 1, but /proc calls it {raw.pid_in_proc}, and ps shows the host"
        f"{_seen(raw, host)}: ps reads /proc, which is still the host's. A new pid namespace "
        "brings new numbers, but no new files. The rest is the host's as well:"
    )
    _comparison(page, raw, namespaces)
    if "CLONE_NEWUSER" in raw.flags:
        page.prose(
            "(Only with a user namespace may a plain user make the other kinds. No id is mapped "
            f"in this one, so everybody's id appears in it as {raw.view.uid}, nobody.)"
        )


def _seen(raw: RawClone, host: Host) -> str:
    """Say that this program is among what ps shows, if it is."""
    return ", even this program" if any(line.pid == host.pid for line in raw.ps.lines) else ""


def _comparison(page: Page, raw: RawClone, namespaces: Namespaces) -> None:
    views = (namespaces.outside, raw.view, namespaces.inside)
    questions = {
        "its own pid": [str(view.pid) for view in views],
        "processes in /proc": [str(view.processes) for view in views],
        "PID 1 in /proc": [view.first_process for view in views],
        "host name": [view.hostname for view in views],
        "mounts": [str(view.mounts) for view in views],
        "network devices": [_devices(view) for view in views],
        "IPC objects": [_optional(view.ipc_objects) for view in views],
    }
    header = [("a shell that is", ""), ("on the host", _HOST)]
    header += [("cloned", _RAW), ("in a sandbox", _INSIDE)]
    page.table(
        header,
        [
            [(name, _BOLD), *((answer, "") for answer in answers)]
            for name, answers in questions.items()
        ],
    )


def _conclusion(page: Page) -> None:
    page.heading("So, what is a container?")
    page.prose(
        "A process that was given new namespaces and, before its program ran, a root, a /proc "
        "and a /dev to go with them. Namespaces decide what it can see; cgroups, which are "
        "another story, how much it can use. To look around inside:"
    )
    page.code("python -m nsbox.demo --shell")


# ---- words -------------------------------------------------------------


def _listing(listing: Listing) -> tuple[str, Sequence[str]]:
    return listing.command, [listing.header, *(line.text for line in listing.lines)]


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"ended by {signal.Signals(-returncode).name} (returncode {returncode})"
    return f"ended with status {returncode}"


def _devices(view: View) -> str:
    return " ".join(view.network_devices) or "none"


def _optional(value: object) -> str:
    return "-" if value is None else str(value)


def _uid(uid: int) -> str:
    return f"{uid} (root)" if uid == 0 else str(uid)
