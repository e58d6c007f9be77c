"""SamplingParams: vLLM's defaults, and every bad value refused by name."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from llmir.engine import GenerationConfig, SamplingParams
from llmir.engine.sampling_params import NOT_IMPLEMENTED
from llmir.errors import ArtifactCorruptError, OptionError, RequestError, UnknownNameError


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k) == (1, 1.0, 1.0, 0)
    assert (params.max_tokens, params.min_tokens, params.seed) == (16, 0, None)
    assert (params.repetition_penalty, params.presence_penalty) == (1.0, 0.0)
    assert params.logprobs is None
    assert not params.greedy


def test_values_are_normalised():
    params = SamplingParams(
        top_k=-1, stop="x", stop_token_ids=[3], logit_bias={"5": 1, 6: np.float32(2)}, n=np.int64(2)
    )
    assert params.top_k == 0
    assert params.stop == ("x",)
    assert params.stop_token_ids == (3,)
    assert params.logit_bias == {5: 1.0, 6: 2.0}
    assert params.n == 2
    assert SamplingParams(temperature=0).greedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 0.5),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 0.0099),
        ("repetition_penalty", 100.1),
        ("repetition_penalty", 1e308),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", [1]),
        ("logit_bias", {1: 101}),
        ("logit_bias", {"a": 1}),
        ("seed", -1),
        ("stop", ""),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 5),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("logprobs", -2),
        ("prompt_logprobs", "all"),
        ("ignore_eos", 1),
        ("detokenize", None),
        ("skip_special_tokens", "no"),
    ],
)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(RequestError, match=f"^{name}"):
        SamplingParams(**{name: value})


def test_stop_needs_text():
    with pytest.raises(RequestError, match="stop needs the text"):
        SamplingParams(stop="x", detokenize=False)


@pytest.mark.parametrize("name", sorted(NOT_IMPLEMENTED))
def test_what_is_not_implemented_is_refused_by_name(name):
    with pytest.raises(OptionError, match=f"{name} is a sampling parameter that llmir does not"):
        SamplingParams(**{name: None})


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'temprature'.*temperature"):
        SamplingParams(temprature=1)


def test_copies():
    params = SamplingParams(temperature=0.5, stop=["a"], logit_bias={1: 2})
    assert copy.deepcopy(params) == params
    assert pickle.loads(pickle.dumps(params)) == params
    assert dataclasses.replace(params, n=3).n == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_generation_config(tmp_path):
    config = GenerationConfig.from_json(
        {"eos_token_id": [2, 5], "temperature": 0.6, "top_k": 20, "max_new_tokens": 99}
    )
    assert config.eos_token_ids == (2, 5)
    params = config.default_params()
    assert (params.temperature, params.top_k, params.max_tokens) == (0.6, 20, 99)
    assert GenerationConfig.from_json({"eos_token_id": 7}).eos_token_ids == (7,)
    assert GenerationConfig.from_json({"do_sample": False}).default_params().greedy
    assert GenerationConfig.from_dir(tmp_path).default_params() == SamplingParams()
    with pytest.raises(ArtifactCorruptError, match="eos_token_id"):
        GenerationConfig.from_json({"eos_token_id": "</s>"})
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactCorruptError, match="is not JSON"):
        GenerationConfig.from_dir(tmp_path)
