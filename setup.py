"""What pyproject.toml cannot say: the kernels are compiled before the package is collected.

A step of its own, in front of build_py: the one that build_py would be part of is allowed to
fail in an editable install.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build


def plugins_module(name):
    """A program of plugins/, which is no package, as a module."""
    path = Path("plugins", f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"plugins_{name}", path)
    # By its name too: a dataclass looks there for what its annotations mean.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPlugins(Command):
    """Compile plugins/ into llmir/objects, where build_py and an editable install find them.

    Without the compiler of the Vulkan kernels the package is built without them, and says so.
    """

    description = "compile the kernels"
    user_options = ()
    editable_mode = False
    build_lib = None

    def initialize_options(self):
        pass

    def finalize_options(self):
        pass

    def run(self):
        plugins_module("build").build_objects()
        vulkan = plugins_module("build_vulkan")
        if reason := vulkan.missing_tool():
            self.warn(f"left out: {reason}")
        else:
            vulkan.build_modules()
        gpu = plugins_module("build_gpu")
        gpu.build_cuda()
        gpu.build_hip()

    def get_source_files(self):
        kinds = (".c", ".h", ".py", ".comp", ".glsl", ".cu", ".cc")
        return sorted(str(p) for p in Path("plugins").rglob("*") if p.suffix in kinds)

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class BuildWithPlugins(build):
    sub_commands = [("build_plugins", None), *build.sub_commands]  # noqa: RUF012


setup(cmdclass={"build": BuildWithPlugins, "build_plugins": BuildPlugins})
