"""Every error that llmir raises on purpose.

    LlmirError
    ├── OptionError (ValueError)           a parameter or flag, refused by name
    │   └── UnknownNameError               a name not registered; lists those that are
    ├── ModelError (ValueError)            the model given to the compiler
    │   ├── ModelNotFoundError             no such file, directory or hub id
    │   ├── UnsupportedModelError          valid, but needs what llmir does not have
    │   └── CorruptModelError              truncated, inconsistent, or not what it says it is
    ├── CompileError (RuntimeError)        turning a model into modules
    │   ├── VerifyError                    llm IR that breaks an op's contract
    │   ├── ToolVersionError               torch or an IREE package is not the pinned one
    │   └── InPlaceError                   the step would copy KV pages or a weight
    ├── ArtifactError (RuntimeError)       the artifact directory
    │   ├── ArtifactNotFoundError          no manifest there
    │   ├── ArtifactVersionError           written by a newer llmir
    │   ├── ArtifactCorruptError           a file is missing or its checksum differs
    │   └── ArtifactTargetError            no module in it runs on this machine or device
    ├── DeviceError (RuntimeError)         a device that is not there, or that failed
    │   └── DeviceMemoryError              it has less memory than was wanted; says what for
    ├── EngineStoppedError (RuntimeError)  the engine takes no requests any more
    └── RequestError (ValueError)          a prompt or sampling parameter that cannot be served

A message says what was expected, what came, and what to do.  Callers catch
`LlmirError`; the ValueError / RuntimeError parents let code written against
other libraries keep its `except` clauses.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlmirError(Exception):
    """Base of every error raised on purpose by llmir."""


class OptionError(LlmirError, ValueError):
    """A parameter or flag that llmir does not accept."""


class UnknownNameError(OptionError):
    """A name was looked up that nobody registered.

    Args:
        kind: what was looked up, singular: "target", "op", "provider".
        name: the name that was asked for.
        known: the names there are; listed, sorted, in the message, and after them those that
            `name` may be a slip of.
        hint: what to do, where that is known.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        message = f"unknown {kind} {name!r}; known: {', '.join(self.known) or '(none)'}"
        if close := difflib.get_close_matches(name, self.known):
            message += f". Did you mean {' or '.join(close)}?"
        super().__init__(message + (f" {hint}" if hint else ""))


class ModelError(LlmirError, ValueError):
    """The model given to the compiler cannot be used."""


class ModelNotFoundError(ModelError):
    """No model at the path or hub id."""


class UnsupportedModelError(ModelError):
    """A valid model that needs something llmir does not have."""


class CorruptModelError(ModelError):
    """Model files that are truncated or contradict themselves."""


class CompileError(LlmirError, RuntimeError):
    """A model could not be compiled."""


class VerifyError(CompileError):
    """llm IR that breaks an op's contract: names op, operand, expected and found."""


class ToolVersionError(CompileError):
    """torch or an IREE package is missing or not the pinned version."""


class InPlaceError(CompileError):
    """The compiled step would copy or allocate as much as a KV page set or a weight."""


class ArtifactError(LlmirError, RuntimeError):
    """An artifact directory cannot be used."""


class ArtifactNotFoundError(ArtifactError):
    """There is no artifact at the path."""


class ArtifactVersionError(ArtifactError):
    """The artifact was written by a newer llmir."""


class ArtifactCorruptError(ArtifactError):
    """A file of the artifact is missing or not what the manifest says."""


class ArtifactTargetError(ArtifactError):
    """The artifact holds no module for this machine or device."""


class DeviceError(LlmirError, RuntimeError):
    """A device is not there, or failed."""


class DeviceMemoryError(DeviceError):
    """A device has less memory than was wanted: says how much, for what, and what to change."""


class EngineStoppedError(LlmirError, RuntimeError):
    """The engine is shutting down, or broke, and takes no requests any more."""


class RequestError(LlmirError, ValueError):
    """A prompt or sampling parameter that cannot be served."""
