"""
What the guest boots: Debian's kernel, an initramfs that finds the disk, and the disk.

The disk is ext4, because the host that nsbox meets is: the root of an initramfs
cannot be left by pivot_root, and before Linux 6.3 a tmpfs could not be id-mapped.
It holds programs, libraries and the Python of this machine, nsbox as it would be
installed, and its tests.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

KERNEL = "linux-image-cloud-amd64"
PYTHON = Path("/usr/bin/python3")
PLAIN_ID = 4711
"""The guest's plain user."""

# Tool, and the package of Debian that has it.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "ldd": "libc-bin",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "strace": "strace",
    "tmux": "tmux",
}
# What the kernel needs for its disk and its ports, and what tests use.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "overlay")
# From this machine, so that payloads are ordinary programs; busybox does the rest.
PROGRAMS = (
    "/bin/bash",
    "/bin/cat",
    "/bin/echo",
    "/bin/hostname",
    "/bin/ls",
    "/bin/mount",
    "/bin/ps",
    "/bin/readlink",
    "/bin/rm",
    "/bin/sh",
    "/bin/sleep",
    "/bin/touch",
    "/bin/true",
    "/usr/bin/env",
    "/usr/bin/id",
    "/usr/bin/ldd",
    "/usr/bin/nice",
    "/usr/bin/setpriv",
    "/usr/bin/stat",
    "/usr/bin/strace",
    "/usr/bin/test",
    "/usr/bin/tmux",
    "/usr/bin/unshare",
)
# What these programs read.
DATA = (
    "/usr/lib/locale/C.utf8",
    "/usr/lib/terminfo",
)
# Libraries that nsbox loads by name.
LIBRARIES = {"/usr/lib/x86_64-linux-gnu/libseccomp.so.2": "libseccomp2"}
DIRECTORIES = (
    "dev",
    "etc/ssl/certs",
    "home",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "usr/share",
    "var/tmp",
    "tmp",
)
ETC = {
    "passwd": f"root:x:0:0::/root:/bin/sh\nplain:x:{PLAIN_ID}:{PLAIN_ID}::/home:/bin/sh\n",
    "group": f"root:x:0:\nplain:x:{PLAIN_ID}:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
UNNEEDED = shutil.ignore_patterns("test", "tests", "idlelib", "lib2to3", "config-*", "tkinter")


def missing_packages() -> list[str]:
    """Return the packages that have to be installed first."""
    packages = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    packages |= {package for path, package in LIBRARIES.items() if not os.path.exists(path)}
    try:
        run(PYTHON, "-c", "import ensurepip")
    except (OSError, subprocess.CalledProcessError):
        packages.add("python3-venv")
    return sorted(packages)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; its errors go to stderr."""
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


def kernel(directory: Path) -> Path:
    """Return the directory with Debian's kernel, unpacked; nothing is installed."""
    unpacked = directory / "kernel"
    if not unpacked.exists():
        depends = run("apt-cache", "depends", KERNEL)
        name = re.search(r"Depends: (linux-image-\S+)", depends)
        if name is None:
            raise RuntimeError(f"{KERNEL} depends on no kernel:\n{depends}")
        download = directory / "download"
        download.mkdir(exist_ok=True)
        # apt's own user may not be able to write here.
        options = ("-qq", "-o", "APT::Sandbox::User=root")
        run("apt-get", *options, "download", name[1], cwd=download)
        (package,) = download.glob("*.deb")
        run("dpkg-deb", "-x", package, unpacked)
        shutil.rmtree(download)
    return unpacked


def initramfs(directory: Path, unpacked: Path, image: Path) -> None:
    """Pack busybox, the modules and the script that mounts the disk."""
    tree = new_tree(directory / "initramfs", ("dev", "proc", "root", "modules"))
    copy_program(tree, Path(which("busybox")))
    shutil.copy(HERE / "initramfs.sh", tree / "init")
    for number, module in enumerate(with_dependencies(unpacked / "lib" / "modules", MODULES)):
        shutil.copy(module, tree / "modules" / f"{number:02}-{module.name}")
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with image.open("wb") as file:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc", "-R", "0:0"],
            input=names.encode(),
            cwd=tree,
            stdout=file,
            stderr=subprocess.DEVNULL,  # the number of blocks
            check=True,
        )


def with_dependencies(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return modules in the order in which they can be inserted."""
    files = {path.stem.replace("-", "_"): path for path in directory.rglob("*.ko")}
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            visit(other.replace("-", "_"))
        order.append(name)

    for name in names:
        visit(name)
    return [files[name] for name in order]


def disk(directory: Path, package: Path, suites: Mapping[str, Sequence[str]], image: Path) -> None:
    """
    Make the guest's file system.

    Args:
        directory: Where to work.
        package: nsbox: a wheel, or a checkout.
        suites: Who runs tests in a guest, and pytest's arguments there.
        image: The file to write.
    """
    tree = new_tree(directory / "disk", DIRECTORIES)
    for name in ("tmp", "var/tmp"):
        (tree / name).chmod(0o1777)
    for name, text in ETC.items():
        (tree / "etc" / name).write_text(text)
    for name in (*PROGRAMS, which("busybox")):
        copy_program(tree, Path(name))
    for name in LIBRARIES:
        copy_program(tree, Path(name))
    for name in DATA:
        shutil.copytree(name, tree / name.lstrip("/"))
    copy_python(tree, package, directory)
    home = tree / "nsbox"
    home.mkdir()
    shutil.copytree(PROJECT / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", home)
    # Compile the tests as pytest does: the guest's processor would take ten times as long.
    collect = ("-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-qq", "tests")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # whatever it says here
    subprocess.run(
        [directory / "venv/bin/python", *collect],
        cwd=home,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    for name, arguments in suites.items():
        (home / f"arguments.{name}").write_text("\0".join(arguments))
    image.unlink(missing_ok=True)
    # In the guest everything belongs to root, whoever runs this.
    as_root = () if os.geteuid() == 0 else ("unshare", "--map-root-user")
    run(*as_root, "mke2fs", "-q", "-t", "ext4", "-d", tree, image, "1G")


def new_tree(tree: Path, directories: Iterable[str]) -> Path:
    """Return an empty root directory, merged into /usr as Debian's is."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for name in directories:
        (tree / name).mkdir(parents=True)
    return tree


def copy_python(tree: Path, package: Path, directory: Path) -> None:
    """Copy Debian's Python, and install nsbox and what its tests need beside it."""
    program = PYTHON.resolve()
    library = Path("/usr/lib") / program.name
    copy_program(tree, program)
    (tree / "usr" / "bin" / "python3").symlink_to(program.name)
    shutil.copytree(library, tree / library.relative_to("/"), ignore=UNNEEDED)
    for extension in library.glob("lib-dynload/*.so"):
        copy_libraries(tree, extension)
    environment = directory / "venv"
    run(PYTHON, "-m", "venv", "--clear", environment)
    run(environment / "bin" / "pip", "install", "-q", f"{package}[test]")
    (installed,) = environment.glob("lib/*/site-packages")
    local = tree / "usr" / "local" / installed.relative_to(environment).parent / "dist-packages"
    shutil.copytree(installed, local, ignore=shutil.ignore_patterns("pip*", "setuptools*"))
    for extension in local.rglob("*.so*"):
        copy_libraries(tree, extension)


def copy_program(tree: Path, program: Path) -> None:
    """Copy a program with its libraries to the same place in a tree."""
    target = tree / program.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, target)
    copy_libraries(tree, program)


def copy_libraries(tree: Path, program: Path) -> None:
    """Copy the libraries that the dynamic linker finds for a program."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for path in re.findall(r"(/\S+) \(0x", listed):
        target = tree / path.lstrip("/")
        if not target.exists() and not path.startswith(str(tree)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def which(tool: str) -> str:
    """Return the path of a tool that missing_packages() has found."""
    path = shutil.which(tool)
    assert path is not None
    return path
