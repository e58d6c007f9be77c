"""Compile the Vulkan kernels: each plugins/vulkan/*.comp to llmir/objects/vulkan/*.spv.

    python plugins/build_vulkan.py        those that are out of date

The compiler is Khronos' glslangValidator, found on the PATH: Debian's package glslang-tools (no
package of PyPI that is kept up carries it).  Where spirv-val (Debian's spirv-tools) is there as
well, it checks what was made.  The result depends on the sources, the flags and the compiler's
version; a digest of these lies beside each module.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "plugins" / "vulkan"
OBJECTS = ROOT / "llmir" / "objects" / "vulkan"
COMPILER, VALIDATOR = "glslangValidator", "spirv-val"
# SPIR-V 1.3, which every Vulkan 1.1 device takes.
ENVIRONMENT = ("--target-env", "vulkan1.1")
FLAGS = ("-V", *ENVIRONMENT, "-I.")


class BuildError(Exception):
    """The compiler refused; its messages are the text."""


def missing_tool() -> str | None:
    """What these kernels cannot be built without and this machine lacks, in a sentence."""
    if shutil.which(COMPILER):
        return None
    return f"the Vulkan kernels need {COMPILER}: apt-get install glslang-tools"


def build_modules() -> list[Path]:
    """Compile the shaders that are out of date into OBJECTS; returns those compiled.

    Raises BuildError with the compiler's messages, or what is missing; a shader that was refused
    has no module then.
    """
    shaders = sorted(SOURCES.glob("*.comp"))
    digest = "" if missing_tool() else _digest()
    outdated = [s for s in shaders if not digest or not _is_current(s, digest)]
    if not outdated:
        return []
    if reason := missing_tool():
        raise BuildError(reason)
    OBJECTS.mkdir(parents=True, exist_ok=True)
    return [_compile(shader, digest) for shader in outdated]


def module_of(shader: Path) -> Path:
    """Where a shader's module is made."""
    return OBJECTS / f"{shader.stem}.spv"


def _is_current(shader: Path, digest: str) -> bool:
    module, stamp = module_of(shader), module_of(shader).with_suffix(".sha256")
    return module.exists() and stamp.exists() and stamp.read_text() == digest


def _compile(shader: Path, digest: str) -> Path:
    module = module_of(shader)
    stamp = module.with_suffix(".sha256")
    # Whoever is interrupted in here leaves no stamp, and none that belongs to other code.
    stamp.unlink(missing_ok=True)
    module.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=OBJECTS) as scratch:
        made = Path(scratch) / module.name
        _run([COMPILER, *FLAGS, shader.name, "-o", str(made)])
        if shutil.which(VALIDATOR):
            _run([VALIDATOR, *ENVIRONMENT, str(made)])
        os.replace(made, module)
    stamp.write_text(digest)
    return module


def _digest() -> str:
    """Of all that the modules depend on."""
    digest = hashlib.sha256(repr([_run([COMPILER, "--version"]), *FLAGS]).encode())
    for source in sorted([*SOURCES.glob("*.comp"), *SOURCES.glob("*.glsl")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    try:
        for path in build_modules():
            print(f"compiled {path.relative_to(ROOT)}")
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
