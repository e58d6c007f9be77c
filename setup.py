"""What pyproject.toml cannot say: the C kernels are compiled before the package is collected.

A step of its own, in front of build_py: the one that build_py would be part of is allowed to
fail in an editable install.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

_spec = importlib.util.spec_from_file_location("plugins_build", Path("plugins", "build.py"))
plugins_build = sys.modules["plugins_build"] = importlib.util.module_from_spec(_spec)


class BuildPlugins(Command):
    """Compile plugins/cpu into llmir/objects, where build_py and an editable install find them."""

    description = "compile the C kernels"
    user_options = ()
    editable_mode = False
    build_lib = None

    def initialize_options(self):
        pass

    def finalize_options(self):
        pass

    def run(self):
        _spec.loader.exec_module(plugins_build)
        plugins_build.build_objects()

    def get_source_files(self):
        return sorted(str(p) for p in Path("plugins").rglob("*") if p.suffix in (".c", ".h", ".py"))

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class BuildWithPlugins(build):
    sub_commands = [("build_plugins", None), *build.sub_commands]  # noqa: RUF012


setup(cmdclass={"build": BuildWithPlugins, "build_plugins": BuildPlugins})
