"""The plan of a sandbox: pure, deterministic, in an order that the kernel accepts."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import KINDS, ROOT, USER, describe, plan_of

from nsbox import Bind, Dev, Overlay, Proc, Tmpfs
from nsbox._compile import _compile, compile_plan
from nsbox._constants import CAPABILITIES, NAMESPACE_FLAGS
from nsbox._host import Host
from nsbox._operations import HOME
from nsbox._plan import Code, Description, Op, OpFlag, Plan
from nsbox.errors import PlanError
from nsbox.mount import Mount
from strategies import ids, mount_lists

hosts = st.sampled_from([USER, ROOT])
by_host = pytest.mark.parametrize("host", [USER, ROOT], ids=["user", "root"])
modes = st.sampled_from(["new", "host", "join"])


def parts(target: str) -> tuple[str, ...]:
    return tuple(part for part in target.split("/") if part)


def is_mount(op: Op) -> bool:
    """Tell whether an operation mounts something in the new root."""
    mounting = op.code in (Code.BIND, Code.MOUNT, Code.OVERLAY)
    return mounting and not op.flags & OpFlag.IN_SCRATCH


def mounted_on(plan: Plan, target: str) -> list[Op]:
    return [op for op in plan.ops if is_mount(op) and "/" + op.target == target]


roots = st.sampled_from([None, "/image", Overlay("/image")])
descriptions = st.builds(
    lambda root, writable, mounts, defaults: describe(
        root=root, writable=writable, mounts=tuple(mounts), default_mounts=defaults
    ),
    roots,
    st.booleans(),
    mount_lists,
    st.booleans(),
)
"""Sandboxes of all shapes, without contradictions."""


# ---- a pure function -----------------------------------------------------


@given(descriptions, hosts)
def test_plan_is_the_same_each_time(box: Description, host: Host) -> None:
    """The same description on the same host gives an equal plan."""
    assert compile_plan(box, host) == compile_plan(box, host)


@given(roots, mount_lists.flatmap(lambda m: st.tuples(st.just(m), st.permutations(m))), hosts)
def test_plan_does_not_depend_on_the_order_of_mounts(
    root: str | Overlay | None, orders: tuple[list[Mount], list[Mount]], host: Host
) -> None:
    """Mounts may be given in any order; the plan is the same."""
    one, other = orders
    assert plan_of(*one, root=root, host=host) == plan_of(*other, root=root, host=host)


@given(descriptions, hosts)
def test_plan_is_hashable(box: Description, host: Host) -> None:
    """A plan is immutable through and through."""
    assert isinstance(hash(compile_plan(box, host)), int)


paths = ["/a", "b", "tmpfs", "/proc", "//proc", "/sys", "/usr", "/etc/alternatives", "/etc/hosts"]
binds = st.builds(
    Bind,
    st.sampled_from(paths),
    st.sampled_from(["/a", "/a/in", "/usr/in", *(path for path in paths if path[0] == "/")]),
    readonly=st.booleans(),
)


def outcome(compiled: Callable[[Description, Host], Plan], *args: Any) -> Plan | str:
    try:
        return compiled(*args)
    except PlanError as error:
        return str(error)


@given(st.lists(binds, max_size=3), st.sampled_from(["new", "host"]), hosts)
def test_plan_by_one_with_other_sources(mounts: list[Bind], pid: str, host: Host) -> None:
    """What was compiled for others that differ in sources only gives the same plan, or error."""
    box = describe({"pid": pid}, mounts=tuple(mounts))
    assert outcome(compile_plan, box, host) == outcome(_compile.__wrapped__, box, host)


def test_plan_is_compiled_once_for_many_directories() -> None:
    """Sandboxes that differ in the source of a bind only have one plan in common."""
    before = _compile.cache_info().misses
    plans = [plan_of(Bind(f"/job/{number}", "/job")) for number in range(10)]
    assert _compile.cache_info().misses <= before + 1
    assert [mounted_on(plan, "/job")[0].source for plan in plans] == [
        f"/job/{number}" for number in range(10)
    ]


@given(descriptions)
def test_plan_looks_at_no_host_but_the_given_one(box: Description) -> None:
    """All paths of the host in a plan come from the description and the given facts."""
    plan = compile_plan(box, USER)
    allowed = {"/image", "/host", "/low1", "/low2", "/store", *USER.directories, *USER.etc}
    sources = {op.source for op in plan.ops if op.code is Code.BIND}
    assert sources <= allowed


# ---- order ---------------------------------------------------------------


@given(descriptions, hosts)
def test_plan_parents_come_first(box: Description, host: Host) -> None:
    """Each operation's parent, if it has one, comes before it and is a mount."""
    plan = compile_plan(box, host)
    for index, op in enumerate(plan.ops):
        assert -1 <= op.parent < index
        if op.parent >= 0:
            code = plan.ops[op.parent].code
            assert code in (Code.SCRATCH, Code.BIND, Code.MOUNT, Code.OVERLAY)


@given(descriptions, hosts)
def test_plan_parent_is_the_nearest_enclosing_mount(box: Description, host: Host) -> None:
    """A mount's parent is the deepest mount that its target lies in, and comes before it."""
    plan = compile_plan(box, host)
    mounts = [(index, parts(op.target)) for index, op in enumerate(plan.ops) if is_mount(op)]
    for index, target in mounts:
        enclosing = [
            (len(prefix), other)
            for other, prefix in mounts
            if target[: len(prefix)] == prefix and target != prefix
        ]
        expected = max(enclosing)[1] if enclosing else -1
        assert plan.ops[index].parent == expected
        assert expected < index


@given(descriptions, hosts)
def test_plan_readonly_comes_after_what_lies_inside(box: Description, host: Host) -> None:
    """A file system becomes read-only only after all that is made or mounted in it."""
    plan = compile_plan(box, host)
    for index, op in enumerate(plan.ops):
        if op.code is not Code.READONLY:
            continue
        outer = parts(plan.ops[op.parent].target)
        inside = [
            other
            for other, made in enumerate(plan.ops)
            if made.code is not Code.READONLY
            and (
                made.parent == op.parent
                or (is_mount(made) and parts(made.target)[: len(outer)] == outer)
            )
        ]
        assert max(inside, default=-1) < index


@given(descriptions, hosts)
def test_plan_pivot_is_last_and_only(box: Description, host: Host) -> None:
    """The last operation enters the new root, and no other does."""
    codes = [op.code for op in compile_plan(box, host).ops]
    assert codes.index(Code.PIVOT) == len(codes) - 1


@given(descriptions, hosts, modes)
def test_plan_ids_come_before_any_file_system(box: Description, host: Host, user: str) -> None:
    """The ids are taken on once, before anything is mounted or created."""
    values = {name: getattr(box, name) for name in ("root", "writable", "mounts")}
    codes = [op.code for op in compile_plan(describe({"user": user}, **values), host).ops]
    before = set(codes[: codes.index(Code.IDS)])
    assert codes.count(Code.IDS) == 1
    assert before <= {Code.LOOPBACK, Code.HOSTNAME}


@given(descriptions, hosts)
def test_plan_root_is_the_first_mount(box: Description, host: Host) -> None:
    """One mount is the root, and it comes before every other in it."""
    targets = [op.target for op in compile_plan(box, host).ops if is_mount(op)]
    assert targets[0] == ""
    assert targets.count("") == 1


@given(descriptions, hosts)
def test_plan_scratch_is_there_where_it_is_needed(box: Description, host: Host) -> None:
    """Scratch comes, once, before all that needs it: layers, and missing mount points."""
    ops = compile_plan(box, host).ops
    users = [index for index, op in enumerate(ops) if op.flags & OpFlag.IN_SCRATCH or op.layers]
    holders = {op.parent for op in ops if op.code is not Code.READONLY}
    users = [index for index in users if ops[index].code is not Code.BIND or index in holders]
    scratch = [index for index, op in enumerate(ops) if op.code is Code.SCRATCH]
    assert len(scratch) <= 1
    if users:
        assert scratch
        assert scratch[0] < min(users)


@given(descriptions, hosts)
def test_plan_layers_come_before_their_overlay(box: Description, host: Host) -> None:
    """What an overlay's options name is in place when it is made."""
    ops = compile_plan(box, host).ops
    for index, op in enumerate(ops):
        if op.code is not Code.OVERLAY:
            continue
        made = {inner.path(ops) for inner in ops[:index]}
        options = dict(op.options)
        names = [options[key] or "" for key in ("lowerdir", "upperdir", "workdir")]
        for name in ":".join(names).split(":"):
            assert f"scratch/{op.layers}/{name}" in made


@given(descriptions, hosts)
def test_plan_options_have_no_names_of_the_host(box: Description, host: Host) -> None:
    """No option of a mount has a character that would have to be escaped somewhere."""
    for op in compile_plan(box, host).ops:
        for _, value in op.options:
            assert not {",", "\\"}.intersection(value or "")


@given(descriptions, hosts)
def test_plan_targets_cannot_lead_out(box: Description, host: Host) -> None:
    """Every target is relative and normalised."""
    for op in compile_plan(box, host).ops:
        assert op.target == "/".join(parts(op.target))
        assert not {".", ".."}.intersection(parts(op.target))


@given(descriptions, hosts)
def test_plan_host_files_are_never_suid_or_devices(box: Description, host: Host) -> None:
    """Every mount of the host's files and every new one is nosuid; binds are nodev too."""
    for op in compile_plan(box, host).ops:
        if op.code in (Code.BIND, Code.MOUNT, Code.OVERLAY, Code.DEVICE):
            assert op.attributes & 2
        if op.code is Code.BIND:
            assert op.attributes & 4


@given(descriptions, hosts)
def test_plan_readonly_binds_are_readonly_from_birth(box: Description, host: Host) -> None:
    """A read-only bind has the attribute before any path leads to it."""
    ops = compile_plan(box, host).ops
    for mount in box.mounts:
        if isinstance(mount, Bind):
            found = [op for op in ops if is_mount(op) and "/" + op.target == mount.target]
            assert [bool(op.attributes & 1) for op in found] == [mount.readonly]


def test_plan_masks_come_after_all_mounts() -> None:
    """Masks hide what is there when everything is mounted; root-only files from host root alone."""
    found = (("/proc/keys", True), ("/proc/kcore", False), ("/sys/firmware", True))
    plan = plan_of(Bind("/sys"), Tmpfs("/x"), host=USER._replace(masks=found), masks=("/x/y",))
    masks = [index for index, op in enumerate(plan.ops) if op.code is Code.MASK]
    assert [plan.ops[index].target for index in masks] == ["proc/keys", "sys/firmware", "x/y"]
    mounted = [index for index, op in enumerate(plan.ops) if op.code in (Code.MOUNT, Code.BIND)]
    assert min(masks) > max(mounted)


# ---- which mounts --------------------------------------------------------


@pytest.mark.parametrize(
    "second", [Tmpfs("/a"), Bind("/x", "//a/."), Proc("/a"), Overlay("/x", "/a")]
)
def test_plan_two_mounts_on_a_target_are_refused(second: Mount) -> None:
    """One of two mounts on the same target could never be seen."""
    with pytest.raises(PlanError):
        plan_of(Tmpfs("/a"), second)


@pytest.mark.parametrize(
    "mount", [Bind("/x", "/"), Tmpfs("/"), Proc("/"), Dev("//"), Overlay("/x")], ids=repr
)
def test_plan_mount_on_the_root_is_refused(mount: Mount) -> None:
    """What is to be the root is given as root."""
    with pytest.raises(PlanError):
        plan_of(mount)


@pytest.mark.parametrize(
    "mount",
    [
        Tmpfs("/proc"),
        Bind("/x", "/proc"),
        Dev("/proc"),
        Overlay("/x", "/proc"),
        Tmpfs("/dev"),
        Bind("/dev"),
        Proc("/dev"),
        Overlay("/x", "/dev"),
    ],
    ids=repr,
)
@by_host
def test_plan_foreign_proc_and_dev_are_refused(mount: Mount, host: Host) -> None:
    """Programs trust /proc and /dev, so nothing else may be mounted there."""
    with pytest.raises(PlanError):
        plan_of(mount, host=host)


@pytest.mark.parametrize("source", ["/proc", "/proc/", "//proc", "/proc/.", "/./proc"])
@pytest.mark.parametrize("target", ["/proc", "/mnt"])
def test_plan_proc_of_the_host_is_refused(source: str, target: str) -> None:
    """The host's processes may not be shown in a pid namespace of its own, however spelled."""
    with pytest.raises(PlanError):
        plan_of(Bind(source, target))


@pytest.mark.parametrize("source", ["/sys", "/sys/", "//sys", "/./sys/."])
def test_plan_sys_of_the_host_is_masked(source: str) -> None:
    """What tells of the host below /sys is hidden, however that is spelled, and where it is."""
    host = USER._replace(masks=(("/sys/firmware", True),))
    ops = plan_of(Bind(source, "/mnt"), host=host).ops
    assert [op.target for op in ops if op.code is Code.MASK] == ["mnt/firmware"]


def test_plan_relative_path_may_be_the_hosts() -> None:
    """From "/", proc is the host's; where a sys is a directory of the caller's, it has no masks."""
    with pytest.raises(PlanError):
        plan_of(Bind("proc", "/mnt"))
    host = USER._replace(masks=(("/sys/firmware", True),))
    assert Code.MASK not in [op.code for op in plan_of(Bind("sys", "/mnt"), host=host).ops]


@pytest.mark.parametrize("source", ["/proc", "/proc/", "//proc"])
def test_plan_proc_of_the_host_is_allowed_with_its_pids(source: str) -> None:
    """In the host's pid namespace its /proc tells the truth, and replaces the default one."""
    plan = plan_of(Bind(source, "/proc"), modes={"pid": "host"})
    assert [op.code for op in mounted_on(plan, "/proc")] == [Code.BIND]


@pytest.mark.parametrize("mount", [Proc("/other/proc"), Dev("/other/dev"), Tmpfs("/dev/shm")])
def test_plan_proc_and_dev_may_lie_elsewhere(mount: Mount) -> None:
    """A Proc or Dev may be mounted anywhere, and things below /dev."""
    assert mounted_on(plan_of(mount), mount.target)


@pytest.mark.parametrize(
    ("mount", "gone"),
    [
        (Tmpfs("/tmp", size="1M"), []),
        (Dev(shm_size="1M"), []),
        (Tmpfs("/home"), ["/home/sandbox"]),
        (Bind("/opt/etc", "/etc"), ["/etc/alternatives"]),
        (Bind("/opt/usr", "/usr"), []),
    ],
    ids=repr,
)
def test_plan_default_gives_way_to_what_covers_it(mount: Mount, gone: list[str]) -> None:
    """A mount on the target of a default, or above it, replaces that."""
    plan = plan_of(mount)
    assert len(mounted_on(plan, mount.target)) == 1
    for target in gone:
        assert mounted_on(plan, target) == []


def test_plan_default_stays_beside_its_neighbour() -> None:
    """A mount whose name only begins like a default's does not replace it."""
    assert mounted_on(plan_of(Tmpfs("/tmp2"), Tmpfs("/etc/alternatives2")), "/tmp")
    assert mounted_on(plan_of(Tmpfs("/etc/alternatives2")), "/etc/alternatives")


def test_plan_etc_gives_way_to_what_covers_it() -> None:
    """No file is written to an /etc that the user mounts."""
    plan = plan_of(Bind("/opt/etc", "/etc"))
    written = [op.target for op in plan.ops if op.code is Code.FILE]
    assert [target for target in written if target.startswith("etc")] == []


def test_plan_single_file_of_etc_gives_way() -> None:
    """A file of /etc that the user mounts is not written, and the others are."""
    written = [op.target for op in plan_of(Bind("/x", "/etc/passwd")).ops if op.code is Code.FILE]
    assert "etc/passwd" not in written
    assert "etc/group" in written


def test_plan_link_gives_way_to_a_mount() -> None:
    """A mount on /bin takes the place of the link to /usr/bin."""
    links = [op.target for op in plan_of(Bind("/x", "/bin")).ops if op.code is Code.SYMLINK]
    assert "bin" not in links
    assert "lib" in links


@pytest.mark.parametrize("root", [None, "/image", Overlay("/image")], ids=repr)
def test_plan_without_defaults_has_none(root: str | Overlay | None) -> None:
    """default_mounts=False leaves out /proc, /dev, /tmp and the home directory."""
    plan = plan_of(root=root, default_mounts=False)
    for target in ("/proc", "/dev", "/tmp", "/home/sandbox"):
        assert mounted_on(plan, target) == []


def test_plan_of_a_root_shows_nothing_of_the_host() -> None:
    """With a root of its own a sandbox gets no directory of the host."""
    sources = [op.source for op in plan_of(root="/image").ops if op.code is Code.BIND]
    assert sources == ["/image"]


@pytest.mark.parametrize("writable", [False, True])
def test_plan_root_is_readonly_unless_writable(writable: bool) -> None:
    """A root directory is read-only from birth, a root of our own once it is filled."""
    directory = plan_of(root="/image", writable=writable)
    assert bool(mounted_on(directory, "/")[0].attributes & 1) is not writable
    made = plan_of(writable=writable)
    sealed = [op for op in made.ops if op.code is Code.READONLY and op.target == ""]
    assert bool(sealed) is not writable


# ---- namespaces ----------------------------------------------------------


@given(st.fixed_dictionaries(dict.fromkeys(KINDS, modes)), hosts)
def test_plan_clone_flags_are_those_of_new_namespaces(modes: dict[str, str], host: Host) -> None:
    """The clone makes a mount namespace, and those that are to be new."""
    flags = compile_plan(describe(modes), host).clone_flags
    new = {kind for kind, flag in NAMESPACE_FLAGS.items() if flags & flag}
    assert new == {"mnt"} | {kind for kind, mode in modes.items() if mode == "new"}
    assert flags == sum(NAMESPACE_FLAGS[kind] for kind in new)


@given(st.fixed_dictionaries(dict.fromkeys(KINDS, modes)), hosts)
def test_plan_joins_the_user_namespace_last(modes: dict[str, str], host: Host) -> None:
    """Every namespace to join is joined once, that of users after the others."""
    joins = compile_plan(describe(modes), host).joins
    assert sorted(joins) == sorted(kind for kind, mode in modes.items() if mode == "join")
    assert "user" not in joins[:-1]


@given(st.fixed_dictionaries(dict.fromkeys(KINDS, modes)), hosts)
def test_plan_memory_is_private_where_others_could_look(modes: dict[str, str], host: Host) -> None:
    """Only to join a user, pid or time namespace the caller's memory is copied."""
    expected = any(modes[kind] == "join" for kind in ("user", "pid", "time"))
    assert compile_plan(describe(modes), host).private_memory is expected


@pytest.mark.parametrize("mode", ["host", "join"])
def test_plan_hostname_of_others_is_refused(mode: str) -> None:
    """A host name is only set in a uts namespace of its own."""
    with pytest.raises(PlanError):
        plan_of(modes={"uts": mode}, hostname="box")


@pytest.mark.parametrize(("hostname", "name"), [(None, "sandbox"), ("box", "box")])
def test_plan_hostname_is_set(hostname: str | None, name: str) -> None:
    """A new uts namespace gets the host name that was asked for, or "sandbox"."""
    ops = plan_of(hostname=hostname).ops
    assert [op.source for op in ops if op.code is Code.HOSTNAME] == [name]


@pytest.mark.parametrize(
    ("kind", "code"), [("net", Code.LOOPBACK), ("uts", Code.HOSTNAME)], ids=["net", "uts"]
)
@pytest.mark.parametrize("mode", ["new", "host", "join"])
def test_plan_only_new_namespaces_are_set_up(kind: str, code: Code, mode: str) -> None:
    """The loopback device and host name of others are left alone."""
    codes = [op.code for op in plan_of(modes={kind: mode}).ops]
    assert (code in codes) is (mode == "new")


@pytest.mark.parametrize("user", ["new", "join", "host"])
def test_plan_ties_to_the_host_are_cut(user: str) -> None:
    """Where the kernel does not make mounts private, the plan does, before any mount."""
    codes = [op.code for op in plan_of(modes={"user": user}, host=ROOT).ops]
    assert (Code.PROPAGATION in codes) is (user != "new")
    if user != "new":
        first = min(codes.index(code) for code in (Code.MOUNT, Code.BIND))
        assert codes.index(Code.PROPAGATION) < first


# ---- ids -----------------------------------------------------------------


@given(ids, ids)
def test_plan_root_caller_is_nobody_to_the_host(uid: int, gid: int) -> None:
    """Root's payload is the overflow user and group, whatever its ids inside."""
    found = plan_of(host=ROOT, uid=uid, gid=gid).ids
    assert (found.uid, found.gid) == (uid, gid)
    assert (found.host_uid, found.host_gid) == (65534, 65533)
    assert found.clear_groups
    assert not found.deny_setgroups


@given(ids, ids)
def test_plan_plain_caller_is_itself_to_the_host(uid: int, gid: int) -> None:
    """A plain user's payload is that user, and may not call setgroups."""
    found = plan_of(uid=uid, gid=gid).ids
    assert (found.uid, found.gid) == (uid, gid)
    assert (found.host_uid, found.host_gid) == (1000, 100)
    assert found.deny_setgroups
    assert not found.clear_groups


@pytest.mark.parametrize(
    ("asked", "host_ids"),
    [
        ({"host_uid": 0}, (0, 65533)),
        ({"host_gid": 0}, (65534, 0)),
        ({"host_uid": 0, "host_gid": 0}, (0, 0)),
        ({"host_uid": 1234, "host_gid": 5678}, (1234, 5678)),
    ],
    ids=repr,
)
def test_plan_root_caller_may_choose(asked: dict[str, int], host_ids: tuple[int, int]) -> None:
    """Root says what the payload is to the host, 0 included; what it leaves out is nobody."""
    found = plan_of(host=ROOT, **asked).ids
    assert (found.host_uid, found.host_gid) == host_ids


@pytest.mark.parametrize(
    ("host", "user", "inside", "outside"),
    [
        (ROOT, "new", (0, 0), (65534, 65533)),
        (USER, "new", (0, 0), (1000, 100)),
        (ROOT, "host", (65534, 65533), (65534, 65533)),
        (USER, "host", (1000, 100), (1000, 100)),
        (ROOT, "join", (0, 0), (None, None)),
        (USER, "join", (0, 0), (None, None)),
    ],
)
def test_plan_default_ids_are_never_host_root(
    host: Host, user: str, inside: tuple[int, int], outside: tuple[int, int]
) -> None:
    """Without ids a payload is 0 in a namespace of its own, and nobody or the caller outside."""
    found = compile_plan(describe({"user": user}), host).ids
    assert ((found.uid, found.gid), (found.host_uid, found.host_gid)) == (inside, outside)


@pytest.mark.parametrize("asked", [{"host_uid": 0}, {"host_uid": 1001}, {"host_gid": 0}], ids=repr)
def test_plan_plain_caller_may_not_choose(asked: dict[str, Any]) -> None:
    """A plain user can stand for no other."""
    with pytest.raises(PlanError):
        plan_of(**asked)


def test_plan_plain_caller_may_name_its_own_ids() -> None:
    """A plain user may say what would be chosen anyway."""
    assert plan_of(host_uid=1000, host_gid=100) == plan_of()


@pytest.mark.parametrize("mode", ["host", "join"])
@pytest.mark.parametrize("asked", [{"host_uid": 0}, {"host_gid": 0}], ids=repr)
def test_plan_foreign_user_namespace_has_its_own_map(mode: str, asked: dict[str, int]) -> None:
    """Only a new user namespace has a map to set."""
    with pytest.raises(PlanError):
        plan_of(modes={"user": mode}, host=ROOT, **asked)


@pytest.mark.parametrize(("mode", "mapped"), [("new", True), ("host", False), ("join", False)])
@by_host
def test_plan_only_a_new_user_namespace_is_mapped(mode: str, mapped: bool, host: Host) -> None:
    """Id maps are written for a user namespace of one's own only."""
    assert plan_of(modes={"user": mode}, host=host).ids.mapped is mapped


@pytest.mark.parametrize(
    ("readonly", "idmap", "mapped"),
    [
        (True, None, False),
        (False, None, True),
        (True, True, True),
        (False, False, False),
    ],
)
def test_plan_writable_bind_of_root_is_idmapped(
    readonly: bool, idmap: bool | None, mapped: bool
) -> None:
    """Root's writable binds show their owner as the payload, unless told otherwise."""
    bind = Bind("/x", readonly=readonly, idmap=idmap)
    assert mounted_on(plan_of(bind, host=ROOT), "/x")[0].idmap is mapped


@pytest.mark.parametrize("idmap", [None, True, False])
def test_plan_bind_of_a_plain_caller_is_never_idmapped(idmap: bool | None) -> None:
    """The payload of a plain user is that user: there is nothing to map."""
    bind = Bind("/x", readonly=False, idmap=idmap)
    assert mounted_on(plan_of(bind), "/x")[0].idmap is False


@pytest.mark.parametrize(
    ("host", "user", "early"),
    [
        (ROOT, "new", True),
        (ROOT, "join", True),
        (ROOT, "host", False),
        (ROOT._replace(may_mount=False), "new", False),
        (USER, "new", False),
    ],
)
def test_plan_caller_opens_what_the_child_could_not(host: Host, user: str, early: bool) -> None:
    """Where the child has lost root's rights, the caller opens the sources, if it may."""
    assert compile_plan(describe({"user": user}), host).parent_sources is early


# ---- capabilities --------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "mask"),
    [
        ((), 0),
        (("CAP_CHOWN",), 1),
        (("CAP_KILL",), 1 << 5),
        (("CAP_NET_BIND_SERVICE", "CAP_NET_RAW"), 1 << 10 | 1 << 13),
        (("CAP_SYS_ADMIN",), 1 << 21),
        (("CAP_CHECKPOINT_RESTORE",), 1 << 40),
        (CAPABILITIES, (1 << 41) - 1),
    ],
    ids=lambda value: str(value)[:40],
)
def test_plan_capabilities_are_a_mask(names: tuple[str, ...], mask: int) -> None:
    """Capabilities become the bits that capability.h numbers."""
    assert plan_of(capabilities=names).capabilities == mask


# ---- what spawns have in common --------------------------------------------


def shared(plan: Plan) -> set[str]:
    """Return the paths of all that is made once for all spawns."""
    return {op.path(plan.ops) for op in plan.ops if OpFlag.SHARED in op.flags}


@by_host
def test_shared_is_what_nobody_can_write_to(host: Host) -> None:
    """The file systems that are read-only at the end are shared, with what is in them."""
    plan = plan_of(host=host)
    assert {"/", "/etc/passwd", "/bin", "/dev", "/dev/null", "/dev/fd"} <= shared(plan)
    for op in plan.ops:
        if op.code is Code.MOUNT and OpFlag.SHARED not in op.flags:
            assert op.source != "tmpfs" or op.path(plan.ops) in ("/tmp", "/dev/shm", HOME)
    assert shared(plan_of(host=host, writable=True)) == {
        path for path in shared(plan) if path.startswith("/dev")
    }


@by_host
def test_nothing_is_shared_that_may_lack_a_mount_point(host: Host) -> None:
    """Where it is not known what a mount point is, it is made later, so each has its own."""
    assert not shared(plan_of(Bind("/data"), host=host))
    assert shared(plan_of(Tmpfs("/data"), host=host)) > {"/data"}


@by_host
def test_mount_point_of_a_large_file_is_a_file(host: Host) -> None:
    """A file of /etc that is too large to copy has its mount point made with the others."""
    plan = plan_of(host=host._replace(etc_large=("/etc/ld.so.cache",)))
    (bind,) = mounted_on(plan, "/etc/ld.so.cache")
    point = plan.ops[plan.ops.index(bind) - 1]
    assert OpFlag.PLACED in bind.flags
    assert (point.code, point.path(plan.ops)) == (Code.FILE, "/etc/ld.so.cache")
    assert "/etc/ld.so.cache" in shared(plan)
