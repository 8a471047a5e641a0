"""Hosts and descriptions for tests of plans: values alone, of machines that never were."""

from typing import Any

from nsbox._compile import compile_plan
from nsbox._constants import NAMESPACE_FLAGS
from nsbox._host import Host
from nsbox._plan import Description, Modes, Plan
from nsbox.mount import Mount

KINDS = tuple(kind for kind in NAMESPACE_FLAGS if kind != "mnt")
USER = Host(
    uid=1000,
    gid=100,
    privileged=False,
    directories=("/usr",),
    links=(("bin", "usr/bin"), ("lib", "usr/lib")),
    etc=("/etc/alternatives",),
    etc_files=(("nsswitch.conf", b"passwd: files\n"), ("ssl/openssl.cnf", b"")),
    etc_links=(("localtime", "/usr/share/zoneinfo/UTC"),),
)
ROOT = Host(
    uid=0,
    gid=0,
    privileged=True,
    overflow_uid=65534,
    overflow_gid=65533,
    directories=USER.directories,
    links=USER.links,
    etc=USER.etc,
    etc_files=USER.etc_files,
    etc_links=USER.etc_links,
)


def describe(modes: dict[str, str] | None = None, **values: Any) -> Description:
    """Return a description; namespaces are new, except time, unless modes says otherwise."""
    namespaces = Modes({**dict.fromkeys(KINDS, "new"), "time": "host", **(modes or {})})
    return Description(namespaces=namespaces, **values)


def plan_of(*mounts: Mount, host: Host = USER, **values: Any) -> Plan:
    return compile_plan(describe(mounts=mounts, **values), host)
