"""From a model's weights to the parameters of an artifact.

Shape legend: N rows, K columns, G groups of a row, B bytes a group, hd head dim.

A parameter is one tensor of the weights file, under the name of the torch
module's parameter that reads it: `<matrix>.weight`, or `.quants`, `.scales` and
`.mins` of a quantised matrix; biases, norms and the RoPE table are float32.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir import formats
from llmir.artifact import StoredTensor
from llmir.formats import GroupQuantized, QuantLayout, Weight
from llmir.importers.base import ImportedModel
from llmir.models.layers import MatrixForm
from llmir.models.rope import rope_table

_HEADROOM_BYTES = 1 << 20  # for the archive's own header and the rest of the artifact
_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.int16}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the weights file.

    bf16 has no numpy dtype: its `array` is the bits as int16.  The file stores bytes.
    """

    name: str
    array: NDArray[Any]


class StoredWeights:
    """The weights of a model as an artifact stores them.

    mode: one of formats.WEIGHT_MODES, applied to every matrix; vectors become float32.
    max_len: positions in the RoPE table.
    """

    def __init__(self, model: ImportedModel, mode: str, max_len: int) -> None:
        self._model = model
        self._max_len = max_len
        self._stored = {
            name: _store(weight, mode) for name, weight in sorted(model.weights.items())
        }

    def form_of(self, name: str) -> MatrixForm:
        """How the matrix of that canonical name is stored."""
        stored = self._stored[name]
        if isinstance(stored, GroupQuantized):
            return MatrixForm(layout=stored.layout)
        return MatrixForm(dtype=stored.format.name)

    def parameters(self) -> Iterator[Parameter]:
        """Every tensor of the weights file."""
        for name, stored in self._stored.items():
            if isinstance(stored, Weight):
                array = stored.raw.view(_NUMPY[stored.format.name]).reshape(stored.shape)
                yield Parameter(name, array)
                continue
            base = name.removesuffix(".weight")
            yield Parameter(f"{base}.quants", stored.quants)
            yield Parameter(f"{base}.scales", stored.scales)
            if stored.mins is not None:
                yield Parameter(f"{base}.mins", stored.mins)
        yield Parameter("rope_table", rope_table(self._model.spec, self._max_len))

    def report(self) -> tuple[StoredTensor, ...]:
        """What the manifest says of each tensor: its source format and how it is stored."""
        return tuple(
            StoredTensor(
                name=name,
                shape=self._model.weights[name].shape,
                source_format=self._model.weights[name].format.name,
                stored_as=_describe(stored),
                num_bytes=_num_bytes(stored),
            )
            for name, stored in self._stored.items()
        )


def write_archive(path: Path, parameters: Iterator[Parameter]) -> None:
    """Write an IREE parameter archive (.irpa).  Raises OSError if it does not fit on the disk."""
    # The runtime is needed here only: importing this module stays cheap.
    from iree.runtime import ParameterIndex

    index, num_bytes = ParameterIndex(), 0
    for parameter in parameters:
        index.add_buffer(parameter.name, np.ascontiguousarray(parameter.array))
        num_bytes += parameter.array.nbytes
    # The archive is written through a mapping, where a full disk would be a SIGBUS.
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + _HEADROOM_BYTES:
        raise OSError(errno.ENOSPC, f"{path.name} needs {num_bytes} bytes, {free} are free")
    path.touch()  # IREE would make a file that other users, a server's too, may not read
    try:
        index.create_archive_file(str(path))
    except (RuntimeError, ValueError, IndexError) as error:  # as IREE's status codes come out
        raise OSError(errno.EIO, f"cannot write {path.name}: {error}") from error


def _store(weight: Weight, mode: str) -> Weight | GroupQuantized:
    if len(weight.shape) == 1:
        return formats.widen(weight)  # the modules declare every vector as f32
    return formats.quantize(weight, mode)


def _describe(stored: Weight | GroupQuantized) -> str:
    if isinstance(stored, Weight):
        return stored.format.name
    return describe_layout(stored.layout)


def describe_layout(layout: QuantLayout) -> str:
    """A layout in a word: "int4 g32 zp8", "int8 g32 mins"."""
    text = f"int{layout.bits} g{layout.group_size}"
    if layout.zero_point:
        text += f" zp{layout.zero_point}"
    return text + (" mins" if layout.has_mins else "")


def _num_bytes(stored: Weight | GroupQuantized) -> int:
    if isinstance(stored, Weight):
        return int(stored.raw.nbytes)
    mins = 0 if stored.mins is None else stored.mins.nbytes
    return int(stored.quants.nbytes + stored.scales.nbytes + mins)
