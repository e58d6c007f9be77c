"""The build of the Vulkan kernels, which is no part of any package."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent


@functools.cache
def load_build_vulkan() -> ModuleType:
    """plugins/build_vulkan.py."""
    path = ROOT / "plugins" / "build_vulkan.py"
    spec = importlib.util.spec_from_file_location("plugins_build_vulkan", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
