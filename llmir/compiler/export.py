"""A model as MLIR: torch.export of the step, imported by iree-turbine.

Shape legend: T tokens, S sequences, P page-table columns, G groups, L logit
rows, N pages, H KV heads, ps page size, hd head dim.
"""

from __future__ import annotations

import torch
from torch.export import Dim

from llmir.artifact import KvLayout, Limits, StepArgument
from llmir.config import ModelSpec
from llmir.dialect_ext.torch_library import TORCH_DTYPES, register_all
from llmir.models import build_model
from llmir.models.decoder import DecoderLM, FormOf, group_of_layer, kv_groups

PARAMETER_SCOPE = "model"
MAX_PAGES = 1 << 24
_LARGEST_EXAMPLE = 16  # no size of an example tensor is larger, pages excepted


def kv_layout(spec: ModelSpec, dtype: str, page_size: int) -> KvLayout:
    """How the KV cache of a model lies in memory."""
    return KvLayout(
        dtype=dtype,
        page_size=page_size,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        group_windows=tuple(kv_groups(spec)),
        group_of_layer=tuple(group_of_layer(spec, i) for i in range(spec.num_layers)),
    )


def step_arguments(kv: KvLayout) -> tuple[StepArgument, ...]:
    """The arguments of `step`, in order, as the manifest lists them."""
    groups = str(len(kv.group_windows))

    def index(name: str, *dims: str) -> StepArgument:
        return StepArgument(name=name, dtype="i32", dims=dims)

    pages = tuple(map(str, kv.page_shape))
    return (
        index("token_ids", "T"),
        index("positions", "T"),
        index("token_seq", "T"),
        index("query_start", "S+1"),
        index("context_len", "S"),
        index("page_table", groups, "S", "P"),
        index("slots", groups, "T"),
        index("logit_rows", "L"),
        *(
            StepArgument(name=f"kv_{layer}", dtype=kv.element, dims=(f"N{group}", *pages))
            for layer, group in enumerate(kv.group_of_layer)
        ),
    )


def export_step(spec: ModelSpec, form_of: FormOf, kv: KvLayout, limits: Limits) -> str:
    """The model's step as MLIR text: torch dialect, llm ops still torch.operator."""
    # Importing turbine registers things with torch, which takes seconds.
    import iree.turbine.aot as aot

    register_all()
    model = build_model(spec, form_of, limits.max_model_len)
    aot.externalize_module_parameters(model, external_scope=PARAMETER_SCOPE)
    program = _trace(model, kv, limits)
    exported = aot.export(
        program,
        module_name="model",
        function_name="step",
        import_symbolic_shape_expressions=True,
    )
    return str(exported.mlir_module)


def _trace(model: DecoderLM, kv: KvLayout, limits: Limits) -> torch.export.ExportedProgram:
    def size(name: str, most: int) -> Dim:
        # A limit below the examples' sizes is the engine's to keep; a dim cannot have it.
        return Dim(name, min=1, max=max(most, _LARGEST_EXAMPLE))

    # Dim names must not be sympy's own: "S" is.
    num_tokens = size("num_tokens", limits.max_num_batched_tokens)
    num_seqs = size("num_seqs", limits.max_num_seqs)
    num_columns = size("num_columns", -(-limits.max_model_len // kv.page_size) + 1)
    num_rows = size("num_rows", limits.max_num_batched_tokens)
    num_groups = len(kv.group_windows)
    page = kv.page_shape
    num_pages = [Dim(f"num_pages_{g}", min=2, max=MAX_PAGES) for g in range(num_groups)]

    def index(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device="meta")

    dtype = TORCH_DTYPES[kv.element]
    # The sizes are examples, all different: export takes equal ones for the same size.
    arguments = (
        index(6),
        index(6),
        index(6),
        index(4),
        index(3),
        index(num_groups, 3, 5),
        index(num_groups, 6),
        index(7),
        [torch.zeros((11 + g, *page), dtype=dtype, device="meta") for g in kv.group_of_layer],
    )
    dynamic_shapes = (
        {0: num_tokens},
        {0: num_tokens},
        {0: num_tokens},
        {0: num_seqs + 1},
        {0: num_seqs},
        {1: num_seqs, 2: num_columns},
        {1: num_tokens},
        {0: num_rows},
        [{0: num_pages[g]} for g in kv.group_of_layer],
    )
    return torch.export.export(model, arguments, dynamic_shapes=dynamic_shapes, strict=False)
