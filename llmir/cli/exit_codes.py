"""Which exit code stands for which error; `llmir --help` lists them."""

from __future__ import annotations

from llmir.errors import (
    ArtifactError,
    CompileError,
    DeviceError,
    LlmirError,
    ModelError,
    OptionError,
    RequestError,
)

UNEXPECTED = 1
USAGE = 2
DIFFERENT = 9
INTERRUPTED = 130

_CODES: dict[type[Exception], int] = {
    OptionError: USAGE,
    ModelError: 3,
    CompileError: 4,
    ArtifactError: 5,
    DeviceError: 6,
    RequestError: 7,
    OSError: 8,
    LlmirError: UNEXPECTED,
}

EXIT_CODES = {
    0: "done",
    UNEXPECTED: "a bug in llmir; please report the traceback",
    USAGE: "an option or argument that is not accepted",
    3: "the model is missing, damaged or not supported",
    4: "compiling failed, or the compiler is not installed",
    5: "the artifact is missing, damaged, or for another machine",
    6: "the device is not there, or failed",
    7: "the prompt or a sampling parameter cannot be served",
    8: "the operating system refused: disk full, no permission, …",
    DIFFERENT: "llmir verify: what was compared differs by more than the thresholds",
    INTERRUPTED: "interrupted (Ctrl-C)",
}


def exit_code_of(error: Exception) -> int:
    """The exit code of an error that llmir or the operating system raised."""
    return next(code for kind, code in _CODES.items() if isinstance(error, kind))
