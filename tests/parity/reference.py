"""What llmir's logits are compared with: transformers, in float32, with eager attention.

Shape legend: T tokens, V vocabulary.

The models are made by llmir.verify.transformers_model, which uses nothing else of llmir's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmir.verify.transformers_model import from_directory as from_checkpoint
from llmir.verify.transformers_model import from_gguf as from_llama_gguf
from llmir.verify.transformers_model import from_weights, hf_name

__all__ = [
    "EXACT",
    "F32",
    "from_checkpoint",
    "from_llama_gguf",
    "from_weights",
    "hf_name",
    "logits",
]

F32 = NDArray[np.float32]

# Options with which an artifact rounds nothing that its weights file does not: what it then
# computes is the reference's, but for the order of sums.
EXACT = {"activations": "f32", "kv_dtype": "f32"}


def logits(model: Any, token_ids: Sequence[int]) -> F32:
    """Teacher-forced logits, float32 [T, V]."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)])).logits[0].float().numpy()
