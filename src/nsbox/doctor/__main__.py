"""The command ``python -m nsbox.doctor``."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence

from . import doctor
from ._report import render


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the diagnosis; return 0 if a default Sandbox can be made, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m nsbox.doctor",
        description="Try what nsbox builds on, and show what works on this host, for this user.",
        epilog="The exit status is 0 if a default Sandbox can be made.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    diagnosis = doctor()
    if options.json:
        print(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        width = min(shutil.get_terminal_size((92, 24)).columns, 100)
        print(render(diagnosis, width=width, color=_wants_color()))
    return 0 if diagnosis.healthy else 1


def _wants_color() -> bool:
    """Tell whether to use colours: https://no-color.org, and never in a pipe."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


if __name__ == "__main__":
    sys.exit(main())
