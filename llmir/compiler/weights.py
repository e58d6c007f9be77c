"""From a model's weights to the parameters of an artifact.

Shape legend: N rows, K columns, G groups of a row, B bytes a group, hd head dim.

A parameter is one tensor of the weights file, under the name of the torch
module's parameter that reads it: `<matrix>.weight`, or `.quants`, `.scales` and
`.mins` of a quantised matrix; biases, norms and the RoPE table are float32.  What C kernels
read is one parameter `<matrix>.packed` instead, of one matrix or of several.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir import formats
from llmir.artifact import StoredParameter, StoredTensor
from llmir.compiler.activations import precision_of, role_of
from llmir.formats import GroupQuantized, QuantLayout, Weight, packed
from llmir.importers.base import ImportedModel
from llmir.models.layers import MatrixForm
from llmir.models.rope import rope_table
from llmir.passes.parameters import PackedParameter

_HEADROOM_BYTES = 1 << 20  # for the archive's own header and the rest of the artifact
ROPE_TABLE = "rope_table"
_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.int16}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the weights file.

    bf16 has no numpy dtype: its `array` is the bits as int16.  The file stores bytes.
    stored_as and sources are what the manifest says of it.
    """

    name: str
    array: NDArray[Any]
    stored_as: str
    sources: tuple[str, ...] = ()


class StoredWeights:
    """The weights of a model as an artifact stores them.

    mode: one of formats.WEIGHT_MODES, applied to every matrix; vectors become float32.
    activations: role of a matrix → how a product with it rounds its input (activations.py).
    max_len: positions in the RoPE table.

    What stays as the file has it is taken apart when it is written, and not kept.
    """

    def __init__(
        self, model: ImportedModel, mode: str, activations: Mapping[str, str], max_len: int
    ) -> None:
        self._model = model
        self._mode = mode
        self._activations = activations
        self._max_len = max_len
        self._names = sorted(model.weights)
        self._rounded = {
            name: formats.quantize(weight, mode)
            for name, weight in sorted(model.weights.items())
            if len(weight.shape) == 2 and mode not in ("keep", weight.format.name)
        }

    def form_of(self, name: str) -> MatrixForm:
        """How the matrix of that canonical name is stored, and what its product is to round."""
        layout, source = self._layout(name), self._format_name(name)
        role = role_of(name, self._model.spec.tie_word_embeddings)
        bits = None if layout is None else layout.bits
        activations = precision_of(role, self._activations[role], source, bits)
        if layout is None:
            return MatrixForm(dtype=source, activations=activations)
        return MatrixForm(layout=layout, format=source, activations=activations)

    def parameters(
        self, plain: Collection[str], packed: Iterable[PackedParameter]
    ) -> Iterator[Parameter]:
        """The tensors of a weights file.

        Args:
            plain: names of parameters as the model's modules have them
            packed: those in the kernels' layout
        """
        for name in self._names:
            for parameter in self._plain(name, plain):
                if parameter.name in plain:
                    yield parameter
        if ROPE_TABLE in plain:
            yield Parameter(ROPE_TABLE, rope_table(self._model.spec, self._max_len), "f32")
        for recipe in packed:
            suffix = ".weight" if recipe.format else ""
            sources = tuple(f"{name}{suffix}" for name in recipe.sources)
            yield Parameter(recipe.name, self._packed(recipe), recipe.format or "f32", sources)

    def report(self) -> tuple[StoredTensor, ...]:
        """What the manifest says of each tensor: its source format and how it is stored."""
        return tuple(
            StoredTensor(
                name=name,
                shape=self._model.weights[name].shape,
                source_format=self._model.weights[name].format.name,
                stored_as=self._describe(name),
                num_bytes=self._num_bytes(name),
            )
            for name in self._names
        )

    def _stored(self, name: str) -> Weight | GroupQuantized:
        if name in self._rounded:
            return self._rounded[name]
        weight = self._model.weights[name]
        if len(weight.shape) == 1:
            return formats.widen(weight)  # the modules declare every vector as f32
        return formats.quantize(weight, "keep")

    def _layout(self, name: str) -> QuantLayout | None:
        if name in self._rounded:
            stored = self._rounded[name]
            return stored.layout if isinstance(stored, GroupQuantized) else None
        weight = self._model.weights[name]
        return None if len(weight.shape) == 1 else weight.format.layout

    def _format_name(self, name: str) -> str:
        """The format that the stored numbers are in."""
        stored = self._rounded.get(name)
        if isinstance(stored, Weight):
            return stored.format.name
        if stored is not None:
            return self._mode
        weight = self._model.weights[name]
        return "f32" if len(weight.shape) == 1 else weight.format.name

    def _plain(self, name: str, wanted: Collection[str]) -> Iterator[Parameter]:
        base = name.removesuffix(".weight")
        planes = {f"{base}.{plane}" for plane in ("quants", "scales", "mins")}
        if not any(n in wanted for n in (name, *planes)):
            return
        stored = self._stored(name)
        if isinstance(stored, Weight):
            array = stored.raw.view(_NUMPY[stored.format.name]).reshape(stored.shape)
            yield Parameter(name, array, stored.format.name, (name,))
            return
        arrays: dict[str, NDArray[Any] | None] = {
            "quants": stored.quants,
            "scales": stored.scales,
            "mins": stored.mins,
        }
        for plane, plane_array in arrays.items():
            if plane_array is not None:
                yield Parameter(f"{base}.{plane}", plane_array, self._describe(name), (name,))

    def _packed(self, recipe: PackedParameter) -> NDArray[Any]:
        if not recipe.format:
            vectors = [self._stored(name) for name in recipe.sources]
            return np.concatenate(
                [v.raw.view(np.float32) for v in vectors if isinstance(v, Weight)]
            )
        matrices = []
        for name in recipe.sources:
            source = self._rounded.get(f"{name}.weight", self._model.weights[f"{name}.weight"])
            matrices.append(packed.pack_matrix(recipe.format, source))
        return packed.concatenate(matrices, in_turn=recipe.in_turn).reshape(-1).view(np.int8)

    def _describe(self, name: str) -> str:
        layout = self._layout(name)
        return self._format_name(name) if layout is None else describe_layout(layout)

    def _num_bytes(self, name: str) -> int:
        shape = self._model.weights[name].shape
        layout, count = self._layout(name), int(np.prod(shape))
        if layout is None:
            return count * formats.get(self._format_name(name)).block_bytes
        planes = 8 if layout.has_mins else 4
        return count * layout.bits // 8 + count // layout.group_size * planes


def write_archive(path: Path, parameters: Iterator[Parameter]) -> tuple[StoredParameter, ...]:
    """Write an IREE parameter archive (.irpa); returns what it holds.

    Raises OSError if it does not fit on the disk.
    """
    # The runtime is needed here only: importing this module stays cheap.
    from iree.runtime import ParameterIndex

    index, stored = ParameterIndex(), []
    for parameter in parameters:
        index.add_buffer(parameter.name, np.ascontiguousarray(parameter.array))
        stored.append(
            StoredParameter(
                name=parameter.name,
                stored_as=parameter.stored_as,
                num_bytes=parameter.array.nbytes,
                sources=parameter.sources,
            )
        )
    num_bytes = sum(p.num_bytes for p in stored)
    # The archive is written through a mapping, where a full disk would be a SIGBUS.
    free = shutil.disk_usage(path.parent).free
    if free < num_bytes + _HEADROOM_BYTES:
        raise OSError(errno.ENOSPC, f"{path.name} needs {num_bytes} bytes, {free} are free")
    path.touch()  # IREE would make a file that other users, a server's too, may not read
    try:
        index.create_archive_file(str(path))
    except (RuntimeError, ValueError, IndexError) as error:  # as IREE's status codes come out
        raise OSError(errno.EIO, f"cannot write {path.name}: {error}") from error
    return tuple(stored)


def describe_layout(layout: QuantLayout) -> str:
    """A layout in a word: "int4 g32 zp8", "int8 g32 mins"."""
    text = f"int{layout.bits} g{layout.group_size}"
    if layout.zero_point:
        text += f" zp{layout.zero_point}"
    return text + (" mins" if layout.has_mins else "")
