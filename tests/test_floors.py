"""The floors of docs/architecture.md: imports go strictly down, and serving needs no compiler."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llmir

PACKAGE = Path(llmir.__file__).parent
# Floor of every top-level module or package; a part may import only what is below it.
FLOORS = {
    "errors": 0,
    "config": 0,
    "digests": 0,
    "host": 0,
    "cpu_levels": 0,
    "targets": 0,
    "formats": 0,
    "artifact": 0,
    "artifact_writer": 0,
    "dialect_ext": 1,
    "runtime": 1,
    "models": 2,
    "passes": 3,
    "sharding": 3,
    "importers": 3,
    "engine": 3,
    "compiler": 4,
    "bench": 4,
    "server": 4,
    "integrations": 4,
    "api": 5,
    "cli": 5,
    "verify": 5,
    "__init__": 5,
    "__main__": 5,
}
LEFT = {"dialect_ext", "models", "passes", "sharding", "importers", "compiler"}
RIGHT = {"runtime", "engine", "bench", "server", "integrations"}
# On the ground floor the parts build on one another, in this order.
GROUND = [
    "errors",
    "config",
    "digests",
    "host",
    "cpu_levels",
    "targets",
    "formats",
    "artifact",
    "artifact_writer",
]
# api and cli are one floor; the command line stands on the Python interface.
TOP = ["api", "__init__", "verify", "cli", "__main__"]
RIGHT_TOWER_NEEDS = {"iree.runtime", "iree._runtime_libs", "numpy", "tokenizers", "jinja2"}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The llmir parts that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports in llmir are absolute"
            names = [node.module or ""]
            if node.module == "llmir":
                names = [f"llmir.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name == "llmir":
                found.add("__init__")
            elif name.startswith("llmir."):
                part = name.split(".")[1]
                found.add(part if part in FLOORS else "__init__")
    return found


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    for order in (GROUND, TOP):
        if importer in order and imported in order:
            return order.index(imported) < order.index(importer)
    pair = {importer, imported}
    if pair & LEFT and pair & RIGHT and FLOORS[importer] != 5:
        return False  # between the towers
    return FLOORS[imported] < FLOORS[importer]


ALL_FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    assert part in FLOORS, f"{part} has no floor: give it one here and in docs/architecture.md"
    # The version number may be read by anyone; it is all that __init__ holds at import.
    wrong = {p for p in imports_of(path) - {"__init__"} if not may_import(part, p)}
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}, not below it"


def test_only_config_reads_the_environment() -> None:
    readers = [
        p.relative_to(PACKAGE).as_posix()
        for p in ALL_FILES
        if "os.environ" in p.read_text(encoding="utf-8")
        or "getenv" in p.read_text(encoding="utf-8")
    ]
    assert readers == ["config.py"]


BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r} or name.startswith({prefixes!r}):
            raise ModuleNotFoundError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
"""


def run_blocked(blocked: set[str], prefixes: tuple[str, ...], code: str) -> str:
    head = BLOCK.format(blocked=blocked, prefixes=prefixes)
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_serving_machine_needs_no_torch_and_no_compiler(demo_artifact: Path) -> None:
    """With torch and the compiler blocked, every right-tower module imports, and answers."""
    modules = sorted(
        "llmir." + p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for p in ALL_FILES
        if part_of(p) in {*RIGHT, "verify"} and p.name not in ("__init__.py", "op_operands.py")
    )
    out = run_blocked(
        {"torch", "transformers", "safetensors"},
        ("iree.compiler", "iree.turbine"),
        f"import importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "import llmir\n"
        f"llm = llmir.LLM({str(demo_artifact)!r})\n"
        "out = llm.generate('The capital of France is',"
        " llmir.SamplingParams(temperature=0, max_tokens=4))\n"
        "print(out[0].outputs[0].text)\n",
    )
    assert "Paris" in out


def test_the_engine_knows_no_iree() -> None:
    out = run_blocked(
        {"iree", "torch"}, (), "import llmir.engine, llmir.runtime.base\nprint('imported')"
    )
    assert out.strip() == "imported"


def test_public_names_are_those_documented() -> None:
    """README's list of public names, __all__ and what can be imported are the same."""
    documented = (PACKAGE.parent / "docs" / "python.md").read_text(encoding="utf-8")
    names = {
        line.removeprefix("### `llmir.").split("(")[0].rstrip("`")
        for line in documented.splitlines()
        if line.startswith("### `llmir.")
    }
    assert names == set(llmir.__all__)
    for name in llmir.__all__:
        assert getattr(llmir, name) is not None
    assert set(dir(llmir)) == {*llmir.__all__, "__version__"}
