"""Types of the generated module: cffi's, which no checker can see through."""

from typing import Any

ffi: Any
