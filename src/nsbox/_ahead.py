"""
Which plans can be carried out in part before a spawn: see csrc/ahead.c.

Pure, like the plan.
"""

from ._constants import NAMESPACE_FLAGS
from ._plan import Code, Op, OpFlag, Plan


def can_be_made_ahead(plan: Plan) -> bool:
    """
    Tell whether the spawns of a plan can use a set of namespaces that was made before.

    All that is mounted has to lie in file systems of the sandbox's own: in a tree of the
    host somebody could remove the mount point meanwhile, and the mount with it. An
    overlay shows what its layers were when it was mounted. And no payload may be able to
    tell the difference: in a base of root's, mounts of the host become read-only for good,
    which otherwise CAP_SYS_ADMIN could change.

    Nor may it reach what belongs to its user namespace besides itself: the launcher, which
    has the caller's memory, and is hidden by a pid namespace only; and the mount namespace
    with a procfs of the host's, which CAP_SYS_ADMIN finds (NS_MNT_GET_PREV, Linux 6.12).
    """
    own = NAMESPACE_FLAGS["user"] | NAMESPACE_FLAGS["mnt"] | NAMESPACE_FLAGS["pid"]
    procs = [index for index, op in enumerate(plan.ops) if _is_proc(op)]
    return (
        not plan.joins
        and plan.clone_flags & own == own
        and not plan.clone_flags & NAMESPACE_FLAGS["time"]
        and (plan.ids.deny_setgroups or plan.parent_sources)
        and not plan.has_sys_admin
        and len(procs) <= 1
        and all(_stays(op, plan, procs) for op in plan.ops)
    )


def _is_proc(op: Op) -> bool:
    return op.code is Code.MOUNT and OpFlag.LATE in op.flags


def _stays(op: Op, plan: Plan, procs: list[int]) -> bool:
    if op.code in (Code.SCRATCH, Code.OVERLAY):
        return False
    if op.code is Code.MASK:
        return op.parent == -1 or op.parent in procs
    if op.code not in (Code.BIND, Code.MOUNT) or not op.target:
        return True
    return op.parent >= 0 and OpFlag.OWN in plan.ops[op.parent].flags
