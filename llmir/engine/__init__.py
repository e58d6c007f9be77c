"""The engine: requests → scheduler → step → sampler → text.  Knows no IREE and no torch."""

from llmir.engine.async_llm import AsyncLLM
from llmir.engine.generation_config import GenerationConfig
from llmir.engine.llm import LLM
from llmir.engine.llm_engine import LLMEngine
from llmir.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from llmir.engine.pins import PinnedPrefix
from llmir.engine.prompts import TextPrompt, TokensPrompt
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.scheduler_config import SchedulerConfig
from llmir.engine.stats import EngineStats, SchedulerStats
from llmir.engine.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineStats",
    "GenerationConfig",
    "LLMEngine",
    "Logprob",
    "PinnedPrefix",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "SchedulerStats",
    "TextPrompt",
    "Tokenizer",
    "TokensPrompt",
]
