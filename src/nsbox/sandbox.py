"""The description of a sandbox, and how to run things in it."""

import errno
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack

from ._cache import Cache, look
from ._child import Child
from ._compile import check_init, compile_plan
from ._constants import CAPABILITIES
from ._control import Mode
from ._explain import Explanation, explain_plan
from ._host import Host
from ._landlock import TRUNCATE_ABI
from ._operations import HOME
from ._payload import Args, Attended, FixedPlace, Place
from ._plan import Description, Modes, Plan
from ._request import DEFAULT_PATH, Request
from ._run import (
    STREAM_LIMIT,
    PopenOptions,
    Pty,
    Running,
    SpawnOptions,
    check_options,
    run,
)
from ._stock import World
from ._values import (
    PathArg,
    check_bool,
    check_capabilities,
    check_environment,
    check_id,
    check_passed,
    check_path,
    check_target,
    check_text,
)
from .cgroup import CgroupArg, check_parent
from .errors import PlanError, Step, spawn_error
from .limits import Limits, check_limits
from .live import Live
from .mount import Mount, Overlay, check_masks, check_mounts, without_stopgaps
from .namespace import Namespace
from .pool import Pool
from .process import Process
from .result import Result
from .seccomp import Profile, check_seccomp

if TYPE_CHECKING:
    from ._async import AsyncProcess

NamespaceArg = str | Namespace

# Field of Sandbox -> kind of namespace.
_NAMESPACE_FIELDS: Final = {
    "user": "user",
    "pid": "pid",
    "uts": "uts",
    "ipc": "ipc",
    "net": "net",
    "cgroup_ns": "cgroup",
    "time": "time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """
    The description of a world to run processes in.

    A value: immutable, comparable, picklable (unless it holds a Namespace).
    Nothing happens on the host until :meth:`spawn` or :meth:`run`, each of
    which makes the world anew.

    With no arguments: the host's program directories (/usr and what links to
    it) and the few files of /etc that programs need, read-only; a private
    /tmp, /dev, /proc and home directory; no network but loopback; no
    capabilities; none of the caller's environment.

    Args:
        root: Directory of the host to be "/", or an Overlay. Read-only unless
            writable. Where a mount point is missing in a read-only root, it is
            made in an overlay above it; the directory itself is never changed.
        writable: Make the root writable.
        mounts: Bind, Tmpfs, Proc, Dev and Overlay objects, in any order. One
            on the target of a default mount, or above it, replaces that. Where a
            link of a root leads the target of one into that of another, name
            both by where they are, or the second may hide the first.
        default_mounts: Mount /proc (the host's, read-only, with pid="host"),
            /dev, /tmp and, with no root given, the home directory. Default True.
        masks: Paths inside that are to be hidden, whatever mount shows them: a file
            reads as empty, a directory has nothing in it, neither can be written.
            A path that does not exist is an error of the spawn. Masked without
            asking: files of /proc, and of /sys if it is bound, that tell of the
            host or of its other users (interrupts, keys, firmware, ...).
        hostname: Default "sandbox". Needs uts="new".
        cwd: Working directory inside, absolute. Default "/". "host": the path
            that the caller's has at each spawn, which must exist inside.
        env: Variables, added to the default PATH, HOME and LANG. "host": the
            caller's whole environment at each spawn, secrets included.
        uid: User id inside. Default 0, which has no rights over the host; with
            user="host" the overflow id, as 0 would be host root there.
        gid: Group id inside. The same defaults.
        host_uid: The host's user id that uid stands for. Default: the caller's;
            for root the overflow id (65534). Only root may choose; 0 makes
            the payload host root and is never a default.
        host_gid: The same for the group.
        user, pid, uts, ipc, net, cgroup_ns: "new" (default), "host", or a
            Namespace to join. The mount namespace is always new. Joining a
            user, pid or time namespace costs a copy of the caller's page tables.
        time: None (default: the host's), "new", or a Namespace.
        namespaces: "own" (default), or "none" for what is left where the host refuses
            namespaces: Landlock (Linux 6.2), the filter, limits and the loss of
            privileges. Paths are the host's: programs and devices, and each
            Bind(path), are open; nothing is writable but by Bind(path,
            readonly=False); /tmp, /proc and home are closed. Where the fields
            above are "new", the filter refuses what the namespace would keep
            apart, sockets above all. What needs a mount, a map or a namespace is
            a PlanError. See docs/security.md for what is weaker.
        init: The first process is nsbox-init, and the payload its child. It reaps what
            others leave, hands on signals that the host sends it (SIGTERM, SIGINT,
            SIGHUP, ...), and ends everything when the payload ends. Signals without a
            handler then end the payload, as they do outside. Default False: the payload is
            the first process, for which pid_namespaces(7) has rules of its own; that is one
            process and one exec less, and its status comes from the kernel itself. Needs
            pid="new" and namespaces="own"; one process more counts for limits.
        capabilities: Names of capabilities that the payload keeps, over its
            own namespaces only (unless user="host"). Default: none. A payload
            with CAP_SYS_ADMIN can make its read-only mounts writable.
        seccomp: The system-call filter. "default": what real programs need;
            "strict": computing, reading files and using open descriptors, with
            threads but without further processes or sockets; a path or mapping: a
            profile of your own in the JSON format of OCI and Docker, read at once;
            None: no filter.
        user_namespaces: The payload may make user namespaces, in which it holds
            every capability; the filter then lets it use them. Default False. To
            map its own user there, the payload must not be user 0 (see uid), or
            must keep CAP_SETFCAP.
        landlock: One more fence around the file system, the host's abstract
            sockets and signals: landlock(7). None (default): where the kernel has
            it; True: it must have it; False: not. Its file-system part would
            forbid all mounts and is left out with user_namespaces or CAP_SYS_ADMIN.
        limits: A Limits: what each run may use. Default: nothing is limited.
            Limits that are kept by cgroup controllers need a writable cgroup.
        cgroup: Where the fresh cgroup of each run is made: a Cgroup, whose own
            limits then hold for all runs together, or a directory (on v1: one
            for each hierarchy). Default: below the caller's own, where limits
            need one at all.

    Raises:
        PlanError: If a value cannot be meant.
    """

    root: PathArg | Overlay | None = None
    writable: bool = False
    mounts: Sequence[Mount] = ()
    default_mounts: bool = True
    masks: Sequence[PathArg] = ()
    hostname: str | None = None
    cwd: PathArg = "/"
    env: Mapping[str, str] | Literal["host"] = field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None
    host_uid: int | None = None
    host_gid: int | None = None
    user: NamespaceArg = "new"
    pid: NamespaceArg = "new"
    uts: NamespaceArg = "new"
    ipc: NamespaceArg = "new"
    net: NamespaceArg = "new"
    cgroup_ns: NamespaceArg = "new"
    time: NamespaceArg | None = None
    namespaces: Literal["own", "none"] = "own"
    init: bool = False
    capabilities: Sequence[str] = ()
    seccomp: PathArg | Mapping[str, Any] | Profile | None = "default"
    user_namespaces: bool = False
    landlock: bool | None = None
    limits: Limits | None = None
    cgroup: CgroupArg | None = None
    _cache: Cache = field(init=False, repr=False, compare=False, default_factory=Cache)

    def __post_init__(self) -> None:
        normalised: dict[str, object] = {
            "writable": check_bool("writable", self.writable),
            "default_mounts": check_bool("default_mounts", self.default_mounts),
            "mounts": check_mounts(self.mounts),
            "cwd": self.cwd if _is_host(self.cwd) else check_target("cwd", self.cwd),
            "masks": check_masks(self.masks),
            "capabilities": check_capabilities(self.capabilities, CAPABILITIES),
            "seccomp": check_seccomp(self.seccomp),
            "user_namespaces": check_bool("user_namespaces", self.user_namespaces),
            "init": check_bool("init", self.init),
            "limits": check_limits("limits", self.limits),
            "cgroup": check_parent(self.cgroup),
        }
        if self.env != "host":
            normalised["env"] = MappingProxyType(check_environment("env", self.env))
        if self.root is not None and not isinstance(self.root, Overlay):
            normalised["root"] = check_path("root", self.root)
        if isinstance(self.root, Overlay) and self.root.target != "/":
            raise PlanError(f"root: {self.root!r} has a target; as a root it is '/'")
        if self.landlock is not None:
            check_bool("landlock", self.landlock)
        if self.hostname is not None:
            _check_hostname(self.hostname)
        for name in ("uid", "gid", "host_uid", "host_gid"):
            if getattr(self, name) is not None:
                check_id(name, getattr(self, name))
        for name, kind in _NAMESPACE_FIELDS.items():
            _check_namespace(name, kind, getattr(self, name))
        if self.namespaces not in ("own", "none"):
            raise PlanError(f"namespaces: must be 'own' or 'none', not {self.namespaces!r}")
        for name, value in normalised.items():
            object.__setattr__(self, name, value)
        # Contradictions show on any host; a privileged caller's may ask for the most.
        compile_plan(self._describe(), Host(uid=0, gid=0, privileged=True, landlock=TRUNCATE_ABI))

    def __hash__(self) -> int:
        names = [item.name for item in fields(self) if item.compare and item.name != "env"]
        env = self.env if isinstance(self.env, str) else frozenset(self.env.items())
        return hash((*(getattr(self, name) for name in names), env))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        if not isinstance(self.env, str):
            values["env"] = dict(self.env)
        return _restore, (type(self), values)

    # ---- running ----

    def spawn(
        self,
        args: Args,
        *,
        cwd: PathArg | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = True,
        controlling_terminal: bool = False,
        pass_directories: Collection[int] = (),
        pty: Pty = False,
        **options: Unpack[PopenOptions],
    ) -> Process:
        """
        Start a process in a fresh world.

        Returns when the program executes, so every failure up to then is an
        exception here. Raises an auditing event ``nsbox.spawn`` with the
        program, args and cwd (sys.audit).

        Args:
            args: Program and arguments, as for subprocess.Popen. A program
                without "/" is searched in the PATH inside.
            cwd: Working directory inside. Default: the sandbox's.
            env: Variables, added to those of the sandbox.
            start_new_session: Detach from the caller's terminal and process
                group. False lets the payload forge input of that terminal, and
                a payload with the caller's own user id signal that group.
            controlling_terminal: Make stdin, a terminal of its own, the
                session's controlling terminal.
            pass_directories: Descriptors of directories to hand on as pass_fds
                does others. Each opens to the payload all that lies below it on the
                host and, by "..", what lies above.
            pty: Give it a terminal of its own, from the devpts inside, as stdin, stdout
                and, unless that is given, stderr; ``process.pty`` is the other end. True:
                as large as the caller's, 24 by 80 if that has none; or (rows, columns).
            **options: stdin, stdout, stderr, text, encoding, errors,
                universal_newlines, bufsize, pipesize, pass_fds, close_fds,
                shell, executable, umask, restore_signals, process_group: as
                for subprocess.Popen. user, group, extra_groups too, but ids
                inside. preexec_fn is refused.

        Returns:
            The running process, which dies with the caller, but not with the calling thread.

        Raises:
            SpawnError: If a step of the set-up failed, with step, errno, path
                and hint; nothing is left of it.
            UnsupportedError: If this host cannot keep a limit; names the
                controller, its mount and the remedy. Nothing was started.
            CgroupError: If the cgroup could not be made.
            PlanError: If an argument cannot be meant, or a namespace to join is closed.
            LookupError: If encoding is none that Python knows.
        """
        return self._spawn(
            None,
            args,
            cwd=cwd,
            env=env,
            start_new_session=start_new_session,
            controlling_terminal=controlling_terminal,
            pass_directories=pass_directories,
            pty=pty,
            **options,
        )

    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in a fresh world, and wait for its end.

        Args:
            args: As for :meth:`spawn`.
            input: What to write to its stdin.
            capture_output: Capture stdout and stderr.
            timeout: Seconds until the whole sandbox is killed. Default: none; at
                0 or below it is killed at once.
            check: Raise if the exit status is not zero.
            **options: As for :meth:`spawn`. With pty, what the terminal shows is captured, as
                stdout.

        Returns:
            A Result, which is a subprocess.CompletedProcess.

        Raises:
            subprocess.TimeoutExpired: At the timeout; carries what was captured.
            subprocess.CalledProcessError: With check, for a status other than 0; with a
                note that names the reason, if that is a limit or the filter.
            SpawnError, PlanError, LookupError, UnsupportedError, CgroupError: As for
                :meth:`spawn`.
        """
        # This thread stays until the payload has ended, so its end may be the payload's.
        return run(
            partial(self._attend, None),
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=self._is_init(),
            **options,
        )

    def open(self) -> Live:
        """
        Make a world that stays, for any number of commands.

        Its first process is nsbox-init, which starts them, reaps what they leave, and ends
        with everything else when the object is closed, or the caller ends, however that
        comes. What a process inherits from its caller (umask, niceness, hard limits,
        ignored signals) it has from the caller at this moment. Raises an auditing event
        ``nsbox.open`` without arguments.

        Returns:
            The live sandbox, a context manager.

        Raises:
            SpawnError, UnsupportedError, CgroupError: As for :meth:`spawn`.
            PlanError: For namespaces="none" and a pid that is not "new", where no init can
                be, and for CAP_SYS_PTRACE, by which the payload could take the init over.
        """
        check_init(self._describe(), "open()")
        sys.audit("nsbox.open")
        lowered, cache = self._cache.lowered(self), self._cache
        store = cache.store(lowered, stays=True)
        return Live(self._spawn, self._attend, lowered, cache.whole(self), store)

    def pool(self, size: int) -> Pool:
        """
        Make sandboxes ahead, so that to start a process in one of them takes hardly longer
        than in none.

        Each is used once. Others are made in the background, by one thread. What a process
        inherits from its caller (umask, niceness, hard limits, ignored signals) it has from
        the caller at the moment when its sandbox was made; memory that this took counts as
        its own. Raises an auditing event ``nsbox.pool`` with the size.

        Args:
            size: How many are to be ready at any time, 1 to 10,000.

        Returns:
            The pool, a context manager; the first sandbox is ready.

        Raises:
            SpawnError, UnsupportedError, CgroupError: As for :meth:`spawn`, if it cannot be made.
            PlanError: For another size; what :meth:`open` refuses; an Overlay with an
                upper, which serves one sandbox at a time.
        """
        check_init(self._describe(), "pool()")
        overlays = [item for item in (self.root, *self.mounts) if isinstance(item, Overlay)]
        if any(item.upper is not None for item in overlays):
            raise PlanError("pool(): an Overlay's upper serves one sandbox at a time, not several")
        world = World(
            spawn=self._spawn,
            attend=self._attend,
            start=self._start,
            lowered=partial(self._cache.lowered, self),
            store=self._cache.store,
            terms=partial(self._cache.terms, self),
            mode=Mode.LAST if self.init else Mode.REPLACE,
            drain=self._is_init(),
        )
        sys.audit("nsbox.pool", size)
        return Pool(world, size)

    async def spawn_async(
        self,
        args: Args,
        *,
        limit: int = STREAM_LIMIT,
        **options: Unpack[SpawnOptions],
    ) -> "AsyncProcess":
        """
        Start a process in a fresh world, for asyncio.

        The start itself, a few milliseconds, happens in the event loop; from then on the
        loop watches the pidfd and the pipes. No thread, no child watcher.

        Args:
            args: As for :meth:`spawn`.
            limit: Bytes that stdout and stderr each buffer before they pause the payload
                (up to twice as many): asyncio.StreamReader's.
            **options: As for :meth:`spawn`, without text, encoding, errors,
                universal_newlines and bufsize: the streams of asyncio carry bytes.

        Returns:
            The running process, shaped like asyncio.subprocess.Process.

        Raises:
            SpawnError, PlanError, LookupError, UnsupportedError, CgroupError: As for
                :meth:`spawn`.
        """
        from . import _async  # not before: to import asyncio takes as long as all of nsbox

        spawn = partial(self._spawn, None)
        return _async.spawn(spawn, args, limit=limit, **options)

    async def run_async(
        self,
        args: Args,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in a fresh world, and wait for its end in the event loop.

        Who cancels it kills the whole sandbox: when the CancelledError goes on,
        nothing is left.

        Args, Returns, Raises: As for :meth:`run`.
        """
        from . import _async

        return await _async.run(
            partial(self._spawn, None),
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=self._is_init(),
            **options,
        )

    def _spawn(
        self,
        place: Place | None,
        args: Args,
        /,
        *,
        attended: bool = False,
        cwd: PathArg | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """
        Check the options of a spawn, and start it.

        Args:
            place: Where; None: in a fresh world.
            args, cwd, env, options: As for :meth:`spawn`.
            attended: See _request.Request.
        """
        terminal, new_session = check_options(options)
        if terminal is not None:
            self._check_devpts()
        variables, directory = self._surroundings(env, cwd)
        return Process(
            self._fresh() if place is None else place,
            args,
            cwd=directory,
            env=variables,
            start_new_session=new_session,
            terminal=terminal,
            attended=attended,
            **options,
        )

    def _attend(
        self,
        place: Place | None,
        args: Args,
        /,
        *,
        cwd: PathArg | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Running:
        """The same, for a thread that waits for the end, and mostly wants nothing else."""
        if options:
            return self._spawn(place, args, attended=True, cwd=cwd, env=env, **options)
        variables, directory = self._surroundings(env, cwd)
        payload = Attended(self._fresh() if place is None else place)
        return payload.begin(args, variables, directory)

    def _fresh(self) -> Place:
        return FixedPlace(self._start, self._cache.fence(self))

    def _surroundings(
        self, env: Mapping[str, str] | None, cwd: PathArg | None
    ) -> tuple[Mapping[str, str], str]:
        variables, directory = self._cache.defaults or self._defaults(cwd)
        if env is not None:
            variables = {**variables, **check_environment("env", env)}
        if cwd is not None:
            directory = check_target("cwd", cwd)
        return variables, directory

    def _check_devpts(self) -> None:
        if self._cache.lowered(self).plan.devpts is None:
            raise PlanError(
                "pty: there is no devpts at /dev/pts inside to make a terminal in: leave the "
                "default mounts, or add Dev()"
            )

    @property
    def subprocess(self) -> ModuleType:
        """
        The standard library's subprocess module, whose processes run in this sandbox.

        ``subprocess = box.subprocess`` is all that existing code needs: Popen,
        run, call, check_call, check_output, getoutput, getstatusoutput, the
        constants and the exceptions are there. Each process gets a fresh world,
        as with :meth:`spawn`. What differs from the module is in
        docs/compatibility.md: the environment and the working directory are the
        sandbox's unless they are given, the session is a new one, and there is
        no preexec_fn.

        Raises:
            UnsupportedError: If this Python's module holds a function that could
                start processes in another way than by Popen.
        """
        return self._cache.subprocess(self)

    def _popen(self, popen: Process, args: Args, options: dict[str, Any]) -> None:
        """Construct a ``box.subprocess.Popen``: spawn, but env is the whole environment."""
        env, cwd = options.pop("env", None), options.pop("cwd", None)
        options.setdefault("start_new_session", True)
        options["pass_fds"] = check_passed(options.get("pass_fds", ()), ())
        Process.__init__(
            popen,
            self._fresh(),
            args,
            cwd=self._directory() if cwd is None else self._resolve(cwd),
            env=self._environment() if env is None else check_environment("env", env),
            attended=False,
            **options,
        )

    def _start(self, request: Request, child: Child) -> None:
        lowered = self._cache.lowered(self)
        lowered.spawn(request, child, self._cache.store(lowered))

    def _defaults(self, cwd: PathArg | None) -> tuple[Mapping[str, str], str]:
        """Return the variables and the directory of a process that asks for no others, or for cwd.

        The caller's is not looked at in vain: it may be gone.
        """
        if self.cwd == "host" and cwd is not None:
            return self._environment(), "/"
        found = self._environment(), self._directory()
        if self.env != "host" and self.cwd != "host":
            self._cache.defaults = found
        return found

    def _directory(self) -> str:
        assert isinstance(self.cwd, str)
        if self.cwd != "host":
            return self.cwd
        try:
            return os.getcwd()
        except OSError as error:
            gone = "cwd='host': the caller's own directory was removed, or cannot be reached"
            raise spawn_error(error.errno or errno.ENOENT, Step.CHDIR, ".", hint=gone) from None

    def _resolve(self, cwd: PathArg) -> str:
        """Return what chdir(2) would take it for, from the directory that a process starts in."""
        if isinstance(cwd, (str, bytes)) and not cwd:
            raise spawn_error(errno.ENOENT, Step.CHDIR, "", hint="cwd: the path is empty")
        path = check_path("cwd", cwd)
        return path if path.startswith("/") else os.path.join(self._directory(), path)

    def _environment(self) -> Mapping[str, str]:
        return dict(os.environ) if self.env == "host" else self._cache.environment(self)

    def _own_environment(self) -> dict[str, str]:
        assert not isinstance(self.env, str)
        home = HOME if self.root is None else "/tmp"
        if not self.default_mounts or self.namespaces == "none":
            home = "/"
        return {"PATH": DEFAULT_PATH, "HOME": home, "LANG": "C.UTF-8", **self.env}

    # ---- looking ahead ----

    def explain(self) -> Explanation:
        """
        Return what a spawn will do, step by step, in the kernel's words.

        The steps are data; ``print(box.explain())`` shows them as text. Nothing
        is started.
        """
        return explain_plan(self._plan(), self._directory())

    def _plan(self) -> Plan:
        return compile_plan(self._describe(), look())

    def _is_init(self) -> bool:
        """Tell whether a payload is the first process of its pid namespace: all end with it."""
        return self.pid == "new" and self.namespaces == "own"

    def _joins(self) -> dict[str, Namespace]:
        values = {kind: getattr(self, name) for name, kind in _NAMESPACE_FIELDS.items()}
        return {kind: value for kind, value in values.items() if isinstance(value, Namespace)}

    def _describe(self) -> Description:
        modes = Modes()
        for name, kind in _NAMESPACE_FIELDS.items():
            value = getattr(self, name)
            modes[kind] = "join" if isinstance(value, Namespace) else value or "host"
        root = self.root
        if root is not None and not isinstance(root, Overlay):
            root = os.fsdecode(root)
        mounts = without_stopgaps(
            self.mounts, "/" if self.namespaces == "none" else root, writable=self.writable
        )
        return Description(
            namespaces=modes,
            root=root,
            writable=self.writable,
            mounts=mounts,
            default_mounts=self.default_mounts,
            hostname=self.hostname,
            uid=self.uid,
            gid=self.gid,
            host_uid=self.host_uid,
            host_gid=self.host_gid,
            capabilities=tuple(self.capabilities),
            seccomp=check_seccomp(self.seccomp),
            user_namespaces=self.user_namespaces,
            masks=tuple(os.fsdecode(path) for path in self.masks),
            landlock=self.landlock,
            limits=self.limits,
            without_namespaces=self.namespaces == "none",
            init=self.init,
        )


def _restore(cls: type[Sandbox], values: dict[str, Any]) -> Sandbox:
    """Make a pickled or copied Sandbox anew; a copy spawns from a plan of its own."""
    return cls(**values)


def _is_host(value: object) -> bool:
    return isinstance(value, str) and value == "host"  # bytes, compared, are an error by python -bb


def _check_hostname(value: object) -> None:
    name = check_text("hostname", value)
    if not 0 < len(os.fsencode(name)) <= 64:
        raise PlanError(f"hostname: {name!r} must have 1 to 64 bytes")
    if not name.isprintable() or " " in name:
        # It is written into the sandbox's /etc/hosts, a line of words.
        raise PlanError(f"hostname: {name!r} must have no white space or control characters")


def _check_namespace(name: str, kind: str, value: object) -> None:
    if isinstance(value, Namespace):
        if value.kind != kind:
            raise PlanError(f"{name}: {value!r} is not of the kind {kind!r}")
    elif not (value in ("new", "host") or (value is None and kind == "time")):
        raise PlanError(f"{name}: must be 'new', 'host' or a Namespace, not {value!r}")
