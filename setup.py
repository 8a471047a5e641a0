"""What pyproject.toml cannot say: the extension module, nsbox-init, and the wheel's abi3 tag."""

import itertools
import os

from setuptools import setup
from setuptools.command.build_ext import build_ext

# From a libc it takes headers only, and from csrc/ what it calls: the linker drops the rest.
SOURCES = (
    "begin.c",
    "incoming.c",
    "init.c",
    "syscalls.c",
    "child.c",
    "privileges.c",
    "landlock.c",
    "limits.c",
    "mounts.c",
    "terminal.c",
    "spawn.c",
    "adopt.c",
    "process.c",
    "messages.c",
)
OPTIONS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes"),
    *("-ffreestanding", "-fno-tree-loop-distribute-patterns", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fno-pie", "-fno-pic"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections,--build-id=none"),
    *("-nostdlib", "-static", "-no-pie", "-s", "-Wl,-z,noexecstack"),
    "-Wl,-z,noseparate-code",  # fewer mappings, of which each init has its own
)


class Build(build_ext):
    """Build nsbox-init too, beside the extension module."""

    def run(self):
        super().run()
        target = self.get_ext_fullpath("nsbox._native")
        program = os.path.join(os.path.dirname(target), "nsbox-init")
        sources = [os.path.join("csrc", name) for name in SOURCES]
        # The compiler alone: options for extension modules are none for a program without libc.
        words = self.compiler.compiler
        compiler = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        self.spawn([*compiler, *OPTIONS, "-o", program, *sources])

    def get_outputs(self):
        target = self.get_ext_fullpath("nsbox._native")
        return [*super().get_outputs(), os.path.join(os.path.dirname(target), "nsbox-init")]


setup(
    cffi_modules=["csrc/ffi_build.py:ffibuilder", "csrc/ffi_build.py:libseccomp"],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
