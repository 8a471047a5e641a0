"""
Build script of the extension module ``nsbox._native`` (cffi, API mode).

The declarations are csrc/nsbox.h itself without its preprocessor lines, so C
and Python cannot drift apart.
"""

from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent
SOURCES = (
    "syscalls.c",
    "targets.c",
    "overlays.c",
    "mounts.c",
    "ahead.c",
    "layers.c",
    "terminal.c",
    "child.c",
    "privileges.c",
    "landlock.c",
    "limits.c",
    "lines.c",
    "files.c",
    "adopt.c",
    "spawn.c",
    "copy.c",
    "make.c",
    "spare.c",
    "cgroup.c",
    "forks.c",
    "process.c",
    "messages.c",
    "start.c",
    "control.c",
    "namespace.c",
    "watcher.c",
    "view.c",
    "bell.c",
)
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes")


def declarations() -> str:
    """Return the text of nsbox.h that cffi can read."""
    lines = (CSRC / "nsbox.h").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def relative(name: str) -> str:
    # setuptools wants paths relative to setup.py, or sdists carry absolute ones.
    return f"csrc/{name}"


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "nsbox._native",
    '#include "nsbox.h"\n',
    sources=[relative(name) for name in SOURCES],
    depends=[
        relative(name) for name in ("nsbox.h", "internal.h", "mounts.h", "protocol.h", "spare.h")
    ],
    include_dirs=["csrc"],
    # Our functions are nobody else's: without these two, a symbol of the same name
    # in the program would replace one of them, and could skip the set-up.
    extra_compile_args=["-std=gnu11", "-O2", "-pthread", "-fvisibility=hidden", *WARNINGS],
    # Bound when loaded: lazy binding takes locks, which the child must not (csrc/child.c).
    extra_link_args=["-pthread", "-Wl,-Bsymbolic", "-Wl,-z,now"],
    py_limited_api=True,
)

# libseccomp is opened when the first profile is compiled (src/nsbox/seccomp.py): this makes a
# Python file with its declarations, so that no C has to be parsed then. From seccomp.h, whose
# constants are part of its stable interface.
libseccomp = FFI()
libseccomp.cdef(
    """
    typedef void *scmp_filter_ctx;
    struct scmp_arg_cmp {
        unsigned int arg;
        int op;
        uint64_t datum_a;
        uint64_t datum_b;
    };
    scmp_filter_ctx seccomp_init(uint32_t def_action);
    void seccomp_release(scmp_filter_ctx ctx);
    int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
    int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
    int seccomp_syscall_resolve_name(const char *name);
    int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall,
                               unsigned int arg_cnt, const struct scmp_arg_cmp *arg_array);
    char *seccomp_syscall_resolve_num_arch(uint32_t arch_token, int num);
    void free(void *);
    int seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
    """
)
libseccomp.set_source("nsbox._libseccomp", None)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
