"""``python -m nsbox.demo``: its facts are true, its text is readable, its shell works."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nsbox.demo.__main__ as command
import nsbox.demo.facts as facts_module
import nsbox.demo.text as text
from nsbox import Sandbox, lowlevel
from nsbox.lowlevel import CloneFlag
from support import in_child

DEMO = [sys.executable, "-m", "nsbox.demo"]
DEADLINE = 60.0
SECTIONS = ("host", "inside", "outside", "several", "killed", "namespaces", "raw_clone")
HEADINGS = (
    "1. Inside",
    "2. Outside",
    "3. Everyone",
    "4. Kill",
    "5. Not only pids",
    "6. What clone(",
    "So, what is a container?",
)

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]


def demo(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the demonstration in a pipe."""
    return subprocess.run(
        [*DEMO, *arguments], capture_output=True, text=True, timeout=DEADLINE, **options
    )


def json_facts(*arguments: str) -> dict[str, Any]:
    result = demo("--json", *arguments)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert isinstance(facts, dict)
    return facts


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """The facts of one run on this host."""
    return json_facts()


def new_kinds(facts: dict[str, Any]) -> set[str]:
    pairs = facts["namespaces"]["pairs"]
    return {pair["kind"] for pair in pairs if pair["outside"] != pair["inside"]}


# ---- facts ---------------------------------------------------------------


def test_json_has_every_section(facts: dict[str, Any]) -> None:
    """There is one key per section, and nothing but the object on stdout."""
    assert tuple(facts) == SECTIONS


def test_inside_shell_is_pid_1(facts: dict[str, Any]) -> None:
    """The shell calls itself 1, and ps shows it /bin/sh as 1."""
    assert facts["inside"]["pid"] == 1
    first = facts["inside"]["ps"]["lines"][0]
    assert first["pid"] == 1
    assert first["text"].endswith("/bin/sh")


def test_inside_ps_shows_nothing_of_the_host(facts: dict[str, Any]) -> None:
    """Of the host's processes, of which there are more, none is in the list."""
    inside = facts["inside"]
    assert inside["ps"]["count"] == 2
    assert inside["host_processes"] > 2


def test_outside_pid_is_ordinary_and_nspid_has_both(facts: dict[str, Any]) -> None:
    """NSpid ends in the host's pid and 1."""
    outside = facts["outside"]
    assert outside["pid"] > 1
    assert outside["nspid"] == [outside["pid"], 1]
    assert outside["parent"] == facts["host"]["pid"]


def test_several_sandboxes_are_all_pid_1(facts: dict[str, Any]) -> None:
    """Each is 1 inside, another process outside, in a pid namespace of its own."""
    several = facts["several"]
    assert len(several) > 1
    assert {twin["pid_inside"] for twin in several} == {1}
    assert len({twin["pid_outside"] for twin in several}) == len(several)
    assert len({twin["pid_namespace"] for twin in several}) == len(several)


def test_killed_from_outside_ends_everything(facts: dict[str, Any]) -> None:
    """SIGKILL inside does nothing; outside it ends PID 1 and all that it started."""
    killed = facts["killed"]
    assert killed["after_kill_inside"] == "still here"
    assert killed["returncode"] == -signal.SIGKILL
    assert len(killed["others"]) == 2
    assert killed["ended"] == killed["others"]


def test_killed_leaves_no_process() -> None:
    """Nothing that the demonstration started is there after it."""
    facts = json_facts()  # of just now: later the numbers may be other sandboxes'
    killed, several = facts["killed"], facts["several"]
    pids = [*killed["others"], killed["pid"], facts["outside"]["pid"]]
    pids += [facts["raw_clone"]["pid_outside"], *(twin["pid_outside"] for twin in several)]
    assert [pid for pid in pids if is_shell_or_sleep(pid)] == []


def is_shell_or_sleep(pid: int) -> bool:
    """Tell whether a pid is a process as the demonstration starts them: in a pid namespace."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "NSpid:\t" in fields and f"NSpid:\t{pid}\n" not in fields


def test_namespaces_are_other_ones_inside(facts: dict[str, Any]) -> None:
    """Every kind but time differs in its inode number."""
    present = {pair["kind"] for pair in facts["namespaces"]["pairs"]}
    assert new_kinds(facts) == present - {"time"}


def test_namespaces_outside_are_those_of_the_caller(facts: dict[str, Any]) -> None:
    """The host's numbers are the inode numbers in /proc/self/ns."""
    for pair in facts["namespaces"]["pairs"]:
        assert pair["outside"] == os.stat(f"/proc/self/ns/{pair['kind']}").st_ino


def test_namespaces_change_the_view(facts: dict[str, Any]) -> None:
    """Host name, network devices and IPC objects are not the host's."""
    inside, outside = facts["namespaces"]["inside"], facts["namespaces"]["outside"]
    assert inside["hostname"] == "sandbox"
    assert outside["hostname"] == os.uname().nodename
    assert inside["network_devices"] == ["lo"]
    assert inside["ipc_objects"] in (0, None)
    assert facts["namespaces"]["uid_outside"] != inside["uid"] == 0


def test_message_queue_is_removed() -> None:
    """The queue that is made for the comparison is there during it, and not afterwards."""

    def child() -> tuple[int, int]:
        # Where nobody else makes any.
        user = CloneFlag(0) if os.geteuid() == 0 else CloneFlag.CLONE_NEWUSER
        lowlevel.unshare(user | CloneFlag.CLONE_NEWIPC)
        with facts_module.message_queue() as made:
            during = len(ipc_queues())
        return during - int(made), len(ipc_queues())

    assert in_child(child) == (0, 0)


def ipc_queues() -> set[str]:
    try:
        lines = Path("/proc/sysvipc/msg").read_text().splitlines()[1:]
    except FileNotFoundError:
        return set()
    return {line.split()[1] for line in lines}


def test_raw_clone_is_pid_1_among_the_hosts_processes(facts: dict[str, Any]) -> None:
    """Its $$ is 1, but its /proc is the host's, with this program and its own host pid in it."""
    raw = facts["raw_clone"]
    assert raw["view"]["pid"] == 1
    assert raw["pid_in_proc"] == raw["pid_outside"] > 1
    assert {facts["host"]["pid"], raw["pid_outside"]} <= {
        line["pid"] for line in raw["ps"]["lines"]
    }


def test_raw_clone_has_the_hosts_world(facts: dict[str, Any]) -> None:
    """Host name, network devices and PID 1 are the host's; only the flags' kinds are new."""
    raw, outside = facts["raw_clone"], facts["namespaces"]["outside"]
    for name in ("hostname", "network_devices", "first_process"):
        assert raw["view"][name] == outside[name]
    assert {f"CLONE_NEW{kind.upper()}" for kind in raw["new"]} == set(raw["flags"])


def test_raw_clone_uses_a_user_namespace_only_without_privilege(
    facts: dict[str, Any], plain_user: None
) -> None:
    """A plain user cannot have a pid namespace alone."""
    assert set(facts["raw_clone"]["flags"]) == {"CLONE_NEWUSER", "CLONE_NEWPID"}


# ---- text ----------------------------------------------------------------


def test_text_in_a_pipe_is_plain() -> None:
    """Every section is there, in ASCII without escape codes, in 80 columns."""
    result = demo()
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert [heading for heading in HEADINGS if f"-- {heading}" not in result.stdout] == []
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.fixture(scope="module")
def gathered() -> facts_module.Facts:
    """The facts of one run in this process."""
    return facts_module.gather()


def test_text_shows_the_facts(gathered: facts_module.Facts) -> None:
    """The numbers of the facts are in the text."""
    shown = text.render(gathered, text.Style())
    for twin in gathered.several:
        assert f"{twin.pid_outside} " in shown
        assert str(twin.pid_namespace) in shown
    for pair in gathered.namespaces.pairs:
        assert f"{pair.outside}  {pair.inside}" in shown
    assert f"kill -9 {gathered.killed.pid}" in shown
    assert f"NSpid:  {gathered.outside.pid}  1" in shown
    assert f"({gathered.raw_clone.ps.count - len(gathered.raw_clone.ps.lines)} more)" in shown


def test_user_without_a_name(gathered: facts_module.Facts) -> None:
    """Where the user has no entry in passwd, the number is said once."""
    host = replace(gathered.host, uid=4711, user="4711")
    namespaces = replace(gathered.namespaces, uid_outside=4711, user_outside="4711")
    shown = text.render(replace(gathered, host=host, namespaces=namespaces), text.Style())
    assert "as user id 4711." in shown
    assert "4711 (" not in shown


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_text_fits_the_terminal(gathered: facts_module.Facts, columns: int) -> None:
    """No line but code is longer than the terminal is wide, down to 64 columns."""
    style = text.Style.for_terminal(columns, color=False, unicode=True)
    lines = text.render(gathered, style).splitlines()
    assert max(len(line) for line in lines if "nsbox.lowlevel" not in line) <= max(64, columns)


def test_text_color_changes_nothing_else(gathered: facts_module.Facts) -> None:
    """Without its escape codes the coloured text is the plain one."""
    colored = text.render(gathered, text.Style(color=True))
    assert "\x1b[" in colored
    plain = re.sub(r"\x1b\[[\d;]*m", "", colored)
    assert plain == text.render(gathered, text.Style())


def test_text_is_safe_from_control_characters() -> None:
    """A command line of the host cannot send escape codes to the user's terminal."""
    page = text.Page(text.Style(unicode=True))
    page.transcript("host:", "", ("ps", ["1 \x1b]0;evil\x07\x9b31m"]))
    assert "1 ?]0;evil??31m" in str(page)


def test_text_on_a_terminal_is_colored_unless_told() -> None:
    """Colours on a terminal; none with --no-color, NO_COLOR or TERM=dumb."""
    assert "\x1b[" in on_terminal().output
    assert "\x1b[" not in on_terminal(["--no-color"]).output
    assert "\x1b[" not in on_terminal(env={"NO_COLOR": "1"}).output
    assert "\x1b[" not in on_terminal(env={"TERM": "dumb"}).output


# ---- without ps, in other roots --------------------------------------------


def test_root_is_what_the_shell_sees(rootfs: Path) -> None:
    """The facts are the same in a directory with a busybox in it."""
    facts = json_facts("--root", str(rootfs))
    assert facts["inside"]["pid"] == 1
    assert facts["inside"]["ps"]["command"] == "busybox ps"
    assert facts["killed"]["returncode"] == -signal.SIGKILL
    assert facts["killed"]["ended"] == facts["killed"]["others"] != []


def test_root_is_not_changed(rootfs: Path) -> None:
    """Nothing appears in the directory."""
    before = sorted(path.relative_to(rootfs) for path in rootfs.rglob("*"))
    json_facts("--root", str(rootfs))
    assert sorted(path.relative_to(rootfs) for path in rootfs.rglob("*")) == before


def test_root_with_nothing_but_a_shell_is_enough(tmp_path: Path) -> None:
    """Where there is no ps, /proc is read by the shell itself."""
    root = shell_and_libraries(tmp_path)
    facts = json_facts("--root", str(root))
    assert [line["pid"] for line in facts["inside"]["ps"]["lines"]] == [1]
    assert facts["inside"]["pid"] == 1
    assert len(facts["killed"]["ended"]) == 2


def shell_and_libraries(directory: Path) -> Path:
    """Return a root with the host's /bin/sh, and the libraries that ldd lists."""
    listed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("ldd does not list the libraries of /bin/sh")
    root = directory / "root"
    for path in ["/bin/sh", *re.findall(r"(/\S+) \(", listed.stdout)]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for path in [directory, *(item for item in directory.rglob("*") if item.is_dir())]:
        Path(path).chmod(0o755)
    return root


def error_of(*arguments: str, **options: Any) -> list[str]:
    """Run the demonstration, which has to fail in the friendly way."""
    result = demo(*arguments, **options)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_root_that_does_not_exist_is_one_message(tmp_path: Path, form: list[str]) -> None:
    """The message has the path and the reason."""
    missing = str(tmp_path / "missing")
    assert error_of(*form, "--root", missing) == [
        f"nsbox.demo: --root: No such file or directory: {missing!r}"
    ]


def test_root_that_is_a_file_is_one_message(tmp_path: Path) -> None:
    """The message says that it is no directory."""
    path = tmp_path / "file"
    path.touch()
    (message,) = error_of("--root", str(path))
    assert "Not a directory" in message


def test_root_without_shell_is_one_message(tmp_path: Path) -> None:
    """The message says what is missing."""
    (message,) = error_of("--root", str(tmp_path))
    assert "there is no /bin/sh" in message


def test_root_with_a_link_to_the_hosts_shell_is_one_message(tmp_path: Path) -> None:
    """An absolute link is followed in the root, where it leads nowhere."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to(os.path.realpath("/bin/sh"))
    (message,) = error_of("--root", str(tmp_path))
    assert "there is no /bin/sh" in message


# ---- failures ------------------------------------------------------------

FORBIDDEN = """
import runpy, sys
from nsbox.lowlevel import CloneFlag, unshare
unshare(CloneFlag.CLONE_NEWUSER)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
sys.argv = ["demo", *sys.argv[1:]]
runpy.run_module("nsbox.demo", run_name="__main__")
"""


def test_forbidden_user_namespaces_are_one_message_and_a_hint() -> None:
    """Where no user namespace can be made, the error and what to do are two lines."""
    result = subprocess.run(
        [sys.executable, "-c", FORBIDDEN], capture_output=True, text=True, timeout=DEADLINE
    )
    assert result.returncode == 1
    assert result.stdout == ""
    message, hint = result.stderr.splitlines()
    assert message.startswith("nsbox.demo: clone3: ")
    assert "user.max_user_namespaces=0" in hint


def test_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C gives status 130 and no output."""

    def interrupted(root: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "gather", interrupted)
    assert command.main([]) == 130
    assert capfd.readouterr() == ("", "")


def test_interrupt_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while sandboxes live ends them; the fixture checks that no child is left."""

    def interrupted(shell: facts_module.Shell) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(facts_module, "_ps", interrupted)
    for experiment in (facts_module._killed, facts_module._raw_clone):
        arguments = [Sandbox()] if experiment is facts_module._killed else []
        with pytest.raises(KeyboardInterrupt):
            experiment(*arguments)


def test_reader_that_stops_reading_is_no_traceback() -> None:
    """With stdout closed at the other end, it ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(DEMO, stdout=writer, stderr=subprocess.PIPE, timeout=DEADLINE)
    finally:
        os.close(writer)
    assert result.stderr == b""
    assert result.returncode == 128 + signal.SIGPIPE


def test_closed_standard_streams_do_no_harm() -> None:
    """Without stdin and stderr the facts are the same."""
    script = '"$0" -m nsbox.demo --json <&- 2>&-'
    result = subprocess.run(
        ["/bin/sh", "-c", script, sys.executable], stdout=subprocess.PIPE, timeout=DEADLINE
    )
    assert result.returncode == 0
    assert json.loads(result.stdout)["raw_clone"]["view"]["pid"] == 1


@pytest.mark.parametrize("option", ["", "--json", "--help", "--root=/dev/null"])
def test_closed_standard_output_does_no_harm(option: str) -> None:
    """Without stdout the status is the same; and stdout does not get what stderr should."""
    script = 'exec "$0" -m nsbox.demo $1 >&-'
    results = [
        subprocess.run(
            ["/bin/sh", "-c", text, sys.executable, option],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
        )
        for text in (script, script.replace(">&-", ""))
    ]
    assert results[0].returncode == results[1].returncode
    assert results[0].stderr == results[1].stderr


def test_ending_of_a_shell_is_an_error_not_a_hang() -> None:
    """A shell that ends instead of answering is reported, with the command."""
    with (
        facts_module.sandboxed_shell(Sandbox()) as (shell, _),
        pytest.raises(facts_module.DemoError, match="exit 3"),
    ):
        shell.ask("exit 3")


# ---- the interactive shell -------------------------------------------------


class Terminal:
    """The demonstration on a terminal of its own, as a user would have it."""

    def __init__(self, arguments: Sequence[str], env: dict[str, str]) -> None:
        self.output = ""
        self.master, self._slave = pty.openpty()
        self.before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [*DEMO, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **env},
            start_new_session=True,
        )

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read_until(self, done: Callable[[], bool]) -> None:
        """Collect output until something is the case, or the deadline."""
        deadline = time.monotonic() + DEADLINE
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"this is all that came: {self.output!r}"
            # The process's end makes no output: look again every now and then.
            if select.select([self.master], [], [], min(left, 0.05))[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")

    def expect(self, pattern: str) -> None:
        self.read_until(lambda: re.search(pattern, self.output) is not None)

    def finish(self) -> int:
        self.read_until(lambda: self.process.poll() is not None)
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536).decode(errors="replace")
        return self.process.wait()

    @property
    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))
        # The terminal is not the controlling one of the new session, so nobody tells it.
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def on_terminal(arguments: Sequence[str] = (), env: dict[str, str] | None = None) -> Terminal:
    """Run the demonstration on a terminal to its end."""
    with Terminal(arguments, {"NO_COLOR": "", **(env or {})}) as terminal:
        assert terminal.finish() == 0
    return terminal


def shell_on_terminal(*arguments: str) -> Terminal:
    """Start the interactive shell, and wait for its prompt."""
    terminal = Terminal(["--shell", *arguments], {})
    try:
        terminal.expect("sandbox:/# ")
    except BaseException:
        terminal.close()
        raise
    return terminal


def test_shell_is_pid_1_and_its_status_is_returned() -> None:
    """``echo $$`` says 1, ``exit 7`` is the demonstration's status, the terminal is as before."""
    with shell_on_terminal() as terminal:
        terminal.type("echo pid=$$\r")
        terminal.expect(r"\npid=1\r")
        terminal.type("exit 7\r")
        assert terminal.finish() == 7
        assert terminal.attributes == terminal.before


def test_shell_ends_at_ctrl_d() -> None:
    """Ctrl-D at the prompt is the end of the shell's input, and no error."""
    with shell_on_terminal() as terminal:
        terminal.type("\x04")
        assert terminal.finish() == 0


def test_shell_takes_a_root(rootfs: Path) -> None:
    """With --root it is the shell of that directory."""
    with shell_on_terminal("--root", str(rootfs)) as terminal:
        terminal.type("echo $$ /bin/*\r")
        terminal.expect(r"1 /bin/busybox /bin/cat ")
        terminal.type("exit\r")
        assert terminal.finish() == 0


def test_shell_terminal_is_raw_meanwhile() -> None:
    """Keys go to the inner terminal: Ctrl-C ends the program in there, not the demonstration."""
    with shell_on_terminal() as terminal:
        assert terminal.attributes != terminal.before
        # A program of its own: a shell that is between two of its commands may miss the key.
        terminal.type("sh -c 'echo started; exec cat'\r")
        terminal.expect(r"\nstarted\r")
        terminal.type("\x03")
        terminal.expect(r"\^C[^#]*sandbox:/# ")
        terminal.type("exit\r")
        terminal.finish()
        assert terminal.attributes == terminal.before


def test_shell_may_open_its_terminal() -> None:
    """/dev/stderr can be opened and written, although the payload is another user."""
    with shell_on_terminal() as terminal:
        terminal.type("echo opened=$((40 + 2)) >/dev/stderr\r")
        terminal.expect(r"opened=42")
        terminal.type("exit\r")
        terminal.finish()


def test_shell_terminal_has_the_size_of_the_users() -> None:
    """The inner terminal follows a change of the outer one's size."""
    with shell_on_terminal() as terminal:
        terminal.resize(33, 101)
        # The signal may come at any time: ask until the answer is there.
        terminal.type('until [ "$size" = "33 101" ]; do size=$(stty size); done; echo seen=$size\r')
        terminal.expect(r"seen=33 101")
        terminal.type("exit\r")
        terminal.finish()


def test_shell_passes_much_output_on() -> None:
    """What does not fit into a pipe or a terminal's buffer arrives whole and in order."""
    with shell_on_terminal() as terminal:
        terminal.type(
            "i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); echo line-$i-; done; echo end=$i\r"
        )
        terminal.expect(r"\nend=5000\r")
        numbers = [int(number) for number in re.findall(r"\nline-(\d+)-", terminal.output)]
        assert numbers == list(range(1, 5001))
        terminal.type("exit\r")
        terminal.finish()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_shell_restores_the_terminal_when_it_is_ended(number: signal.Signals) -> None:
    """A signal that ends the demonstration ends the shell, and leaves a sane terminal."""
    with shell_on_terminal() as terminal:
        found = re.search(r"this shell (\d+)", terminal.output)
        assert found is not None
        terminal.process.send_signal(number)
        assert terminal.finish() == 128 + number
        assert terminal.attributes == terminal.before
        assert not is_shell_or_sleep(int(found[1]))


def test_shell_killed_from_outside_has_status_137() -> None:
    """The end of the shell by a signal is told as shells tell it: 128 and the signal."""
    with shell_on_terminal() as terminal:
        found = re.search(r"this shell (\d+)", terminal.output)
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        assert terminal.finish() == 137
        assert terminal.attributes == terminal.before


def test_shell_without_terminal_is_one_message() -> None:
    """In a pipe it says that it needs a terminal."""
    (message,) = error_of("--shell", stdin=subprocess.DEVNULL)
    assert "not a terminal" in message
