"""The tools that compiling needs, pinned, and the check that they are what they should be.

IREE's Python API, its passes and torch's export change between releases, so
another version is an error rather than a warning.  pyproject.toml pins the
same numbers; a test compares the two.
"""

from __future__ import annotations

import functools
from importlib import metadata

from llmir.errors import ToolVersionError

PINNED = {
    "torch": "2.13.0",
    "iree-turbine": "3.9.0",
    "iree-base-compiler": "3.13.0",
    "iree-base-runtime": "3.13.0",
}


def tool_versions() -> dict[str, str]:
    """Installed version of each pinned tool, "missing" where there is none."""
    found = {}
    for name in PINNED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@functools.cache
def check_tools() -> None:
    """Raise ToolVersionError unless every pinned tool is installed at its version."""
    found = tool_versions()
    wrong = [n for n, want in PINNED.items() if found[n].split("+")[0] != want]
    if wrong:
        lines = ", ".join(f"{n} {PINNED[n]} (found: {found[n]})" for n in wrong)
        raise ToolVersionError(
            f"compiling needs {lines}; install them with: pip install 'llmir[compile]'"
        )
