"""What pyproject.toml cannot say: the extension module and the wheel's abi3 tag."""

from setuptools import setup

setup(
    cffi_modules=["csrc/ffi_build.py:ffibuilder", "csrc/ffi_build.py:libseccomp"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
