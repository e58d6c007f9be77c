"""The engine: requests → scheduler → step → sampler → text.  Knows no IREE and no torch."""

from llmir.engine.generation_config import GenerationConfig
from llmir.engine.llm import LLM
from llmir.engine.llm_engine import LLMEngine
from llmir.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from llmir.engine.prompts import TextPrompt, TokensPrompt
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler import SchedulerConfig
from llmir.engine.structured_output import StructuredOutputsParams
from llmir.engine.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CompletionOutput",
    "GenerationConfig",
    "LLMEngine",
    "Logprob",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "StructuredOutputsParams",
    "TextPrompt",
    "Tokenizer",
    "TokensPrompt",
]
