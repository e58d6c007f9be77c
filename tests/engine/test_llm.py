"""LLM: the forms of prompts, chat, streams, scores, logprobs."""

import numpy as np
import pytest

from llmir.engine import LLM, SamplingParams
from llmir.errors import DeviceError, OptionError, RequestError

from .fake_runner import FakeRunner, reference_greedy, reference_row, small_limits
from .helpers import TOKENIZER, assert_nothing_held, make_llm

LIMITS = small_limits(vocab_size=TOKENIZER.vocab_size)
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def llm():
    llm = make_llm()
    yield llm
    assert_nothing_held(llm.engine)
    assert not llm._latest


def log_softmax(row):
    row = np.asarray(row, np.float64)
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def rows(ids):
    return np.array(
        [reference_row(ids[: i + 1], LIMITS.vocab_size, (None,)) for i in range(len(ids))]
    )


def test_every_form_of_prompt(llm):
    text, ids = "hello world", TOKENIZER.encode("hello world")
    one = [
        text,
        [text],
        ids,
        [ids],
        tuple(ids),
        np.array(ids),
        [np.array(ids)],
        {"prompt": text},
        {"prompt_token_ids": ids},
        [{"prompt_token_ids": ids, "prompt": "shown"}],
    ]
    expected = reference_greedy(ids, 6, LIMITS)
    for prompt in one:
        (output,) = llm.generate(prompt, GREEDY)
        assert output.prompt_token_ids == ids
        assert output.outputs[0].token_ids == expected
        assert output.finished
    assert output.prompt == "shown"
    assert llm.generate([text, ids], GREEDY)[1].prompt is None
    assert llm.generate([], GREEDY) == []


def test_outputs_are_in_the_order_of_prompts(llm):
    prompts = [[i] * (1 + 7 * i % 20) for i in range(1, 20)]
    params = [
        SamplingParams(temperature=0, max_tokens=1 + i % 9, ignore_eos=True) for i in range(19)
    ]
    for prompt, param, output in zip(prompts, params, llm.generate(prompts, params), strict=True):
        assert output.prompt_token_ids == prompt
        assert output.outputs[0].token_ids == reference_greedy(prompt, param.max_tokens, LIMITS)


@pytest.mark.parametrize(
    ("prompts", "params", "match"),
    [
        ("", None, "prompt is empty"),
        ([[]], None, "prompt is empty"),
        (["a", ""], None, "prompt is empty"),
        (5, None, "must be text"),
        ([[1, "a"]], None, "integers"),
        ([1.5], None, "list of integers, not float"),
        ([None], None, "list of integers, not NoneType"),
        ({"prompt": 1}, None, "prompt must be text"),
        ({}, None, "must have prompt"),
        ({"prompt": "a", "multi_modal_data": {}}, None, "multi_modal_data is not supported"),
        ([1] * 200, None, r"200 tokens .* 128 tokens"),
        (["a", "b"], [SamplingParams()], "1 SamplingParams were given for 2 prompts"),
        (["a"], [{"temperature": 1}], "expected SamplingParams, not dict"),
    ],
)
def test_bad_prompts_serve_nothing(llm, prompts, params, match):
    with pytest.raises(RequestError, match=match):
        llm.generate(prompts, params)


def test_default_sampling_is_the_models():
    llm = make_llm(generation={"temperature": 0.0, "max_new_tokens": 3, "eos_token_id": 299})
    assert llm.get_default_sampling_params().greedy
    assert len(llm.generate("the cat")[0].outputs[0].token_ids) == 3
    assert llm.engine.core.eos_token_ids == {2, 299}  # the tokenizer's EOS too


def test_chat(llm):
    (output,) = llm.chat(CHAT, GREEDY)
    assert output.prompt.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert output.prompt_token_ids == TOKENIZER.encode(output.prompt, add_special_tokens=False)
    assert not llm.chat(CHAT, GREEDY, add_generation_prompt=False)[0].prompt.endswith("assistant\n")
    assert len(llm.chat([CHAT, CHAT, CHAT], GREEDY)) == 3
    template = "{{ messages[0].content }}{{ tools | tojson }}{{ mood }}"
    (output,) = llm.chat(
        CHAT, GREEDY, chat_template=template, tools=[{"a": 1}], chat_template_kwargs={"mood": "!"}
    )
    assert output.prompt == 'hello[{"a": 1}]!'
    with pytest.raises(RequestError, match="messages is empty"):
        llm.chat([], GREEDY)


def test_stream_is_cumulative_or_delta(llm):
    (whole,) = llm.generate("hello", GREEDY)
    cumulative = list(llm.stream("hello", GREEDY))
    assert [len(o.outputs[0].token_ids) for o in cumulative] == [1, 2, 3, 4, 5, 6]
    assert [o.finished for o in cumulative] == [False] * 5 + [True]
    assert cumulative[-1].outputs == whole.outputs
    deltas = list(llm.stream("hello", GREEDY, delta=True))
    assert "".join(o.outputs[0].text for o in deltas) == whole.outputs[0].text
    tokens = [token for o in deltas for token in o.outputs[0].token_ids]
    assert tokens == whole.outputs[0].token_ids


def test_streams_side_by_side_and_generate_between(llm):
    first, second = llm.stream("hello", GREEDY), llm.stream("the cat", GREEDY, delta=True)
    next(first)
    got = next(second).outputs[0].token_ids
    between = llm.generate(["a dog"] * 2, GREEDY)
    assert between[0].outputs[0].token_ids == reference_greedy(TOKENIZER.encode("a dog"), 6, LIMITS)
    last = list(first)[-1]
    assert last.outputs[0].token_ids == reference_greedy(TOKENIZER.encode("hello"), 6, LIMITS)
    for output in second:
        got += output.outputs[0].token_ids
    assert got == reference_greedy(TOKENIZER.encode("the cat"), 6, LIMITS)


def test_closing_a_stream_aborts_it(llm):
    stream = llm.stream("hello", GREEDY)
    next(stream)
    assert llm.engine.has_unfinished_requests()
    stream.close()
    assert_nothing_held(llm.engine)
    llm.stream("never begun", GREEDY)
    with pytest.raises(RequestError, match="empty"):
        llm.stream("", GREEDY)


def test_a_failing_device_leaves_nothing_behind(llm):
    llm.engine.core.runner = FakeRunner(LIMITS, fail_at=2)
    with pytest.raises(DeviceError):
        llm.generate(["a", "b"], GREEDY)
    assert_nothing_held(llm.engine)
    assert llm.generate("a", GREEDY)[0].finished


@pytest.mark.parametrize("config", [{}, {"max_logit_rows": 3}, {"max_num_batched_tokens": 5}])
def test_score_and_logits(config):
    llm = make_llm(LIMITS, max_num_seqs=2, **config)
    ids = TOKENIZER.encode("the capital of France is Paris and the dog ran home")
    expected = rows(ids)
    np.testing.assert_array_equal(llm.logits(ids), expected)
    scores = llm.score(ids)
    assert scores.dtype == np.float32
    want = [log_softmax(expected[i])[ids[i + 1]] for i in range(len(ids) - 1)]
    np.testing.assert_allclose(scores, want, atol=1e-5)
    assert llm.score([3]).shape == (0,)
    assert llm.score([3] * 128).shape == (127,)  # the whole context
    with pytest.raises(RequestError, match="129 tokens"):
        llm.score([3] * 129)
    with pytest.raises(RequestError, match="empty"):
        llm.score([])
    most = max(len(batch.logit_rows) for batch in llm.engine.core.runner.batches)
    assert most <= config.get("max_logit_rows", 256)
    assert_nothing_held(llm.engine)


def test_logprobs(llm):
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=5, logprobs=3, ignore_eos=True)
    (output,) = llm.generate("hello", params)
    (completion,) = output.outputs
    ids = output.prompt_token_ids + completion.token_ids
    total = 0.0
    for i, entries in enumerate(completion.logprobs):
        want = log_softmax(rows(ids)[len(output.prompt_token_ids) - 1 + i])
        token = completion.token_ids[i]
        assert next(iter(entries)) == token
        assert set(entries) == {token, *np.argsort(-want, kind="stable")[:3].tolist()}
        for candidate, entry in entries.items():
            assert entry.logprob == pytest.approx(want[candidate], abs=1e-5)
            assert entry.rank == 1 + int((want > want[candidate]).sum())
            assert entry.decoded_token == TOKENIZER.decode([candidate], False)
        total += entries[token].logprob
    assert completion.cumulative_logprob == pytest.approx(total)


def test_prompt_logprobs_survive_chunks_and_preemption():
    ids = list(range(10, 32))
    params = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=2, n=2, ignore_eos=True)
    plain = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    limits = small_limits(vocab_size=TOKENIZER.vocab_size, num_pages=(13,))
    llm = make_llm(limits, max_num_batched_tokens=9, max_num_seqs=4)
    _, _, output = llm.generate([ids[:8], ids[:8], ids], [plain, plain, params])
    assert output.metrics.num_preemptions > 0
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(ids)
    want = rows(ids)
    for i, entries in enumerate(output.prompt_logprobs[1:]):
        expected = log_softmax(want[i])
        assert entries[ids[i + 1]].logprob == pytest.approx(expected[ids[i + 1]], abs=1e-5)
        assert len(entries) in (2, 3)
    for completion in output.outputs:
        assert completion.token_ids == reference_greedy(ids, 8, limits)


def test_n_outputs_have_streams_of_their_own_and_seeds_repeat(llm):
    params = SamplingParams(n=4, seed=11, max_tokens=6, ignore_eos=True)
    first, second = llm.generate(["hello", "hello"], params)
    tokens = [completion.token_ids for completion in first.outputs]
    assert [completion.index for completion in first.outputs] == [0, 1, 2, 3]
    assert len({tuple(t) for t in tokens}) == 4
    assert tokens == [completion.token_ids for completion in second.outputs]
    one = SamplingParams(seed=11, max_tokens=6, ignore_eos=True)
    assert llm.generate("hello", one)[0].outputs[0].token_ids == tokens[0]
    fresh = SamplingParams(n=4, max_tokens=6, ignore_eos=True)
    first, second = (llm.generate("hello", fresh)[0].outputs for _ in range(2))
    assert len({tuple(c.token_ids) for c in [*first, *second]}) == 8


def test_stop_strings_span_tokens(llm):
    text = llm.generate("hello", GREEDY)[0].outputs[0].text
    assert len(text) > 6
    stop = text[2:5]
    (plain,) = llm.generate("hello", SamplingParams(temperature=0, stop=[stop], ignore_eos=True))
    at = text.index(stop)
    assert plain.outputs[0].text == text[:at]
    assert plain.outputs[0].finish_reason == "stop"
    assert plain.outputs[0].stop_reason == stop
    params = SamplingParams(
        temperature=0, stop=[stop], ignore_eos=True, include_stop_str_in_output=True
    )
    assert llm.generate("hello", params)[0].outputs[0].text == text[: at + len(stop)]
    for output in llm.stream("hello", params):
        assert (text[:at] + stop).startswith(output.outputs[0].text)


def test_no_stop_string_before_min_tokens(llm):
    (whole,) = llm.generate("hello", GREEDY)
    text = whole.outputs[0].text
    params = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "stop": list(set(text))}
    (early,) = llm.generate("hello", SamplingParams(**params))
    assert early.outputs[0].text == ""
    (late,) = llm.generate("hello", SamplingParams(min_tokens=5, **params))
    assert len(late.outputs[0].token_ids) >= 5
    assert late.outputs[0].finish_reason == "stop"
    assert late.outputs[0].text
    assert text.startswith(late.outputs[0].text)


def test_the_stop_token_is_no_part_of_the_text(llm):
    (whole,) = llm.generate("hello", GREEDY)
    tokens = whole.outputs[0].token_ids
    at = 2
    params = {"temperature": 0, "stop_token_ids": [tokens[at]], "ignore_eos": True}
    (cut,) = llm.generate("hello", SamplingParams(**params))
    assert cut.outputs[0].token_ids == tokens[: at + 1]
    assert cut.outputs[0].stop_reason == tokens[at]
    prompt = TOKENIZER.encode("hello")
    assert cut.outputs[0].text == TOKENIZER.decode(prompt + tokens[:at])[len("hello") :]
    (kept,) = llm.generate("hello", SamplingParams(include_stop_str_in_output=True, **params))
    assert kept.outputs[0].text == TOKENIZER.decode(prompt + tokens[: at + 1])[len("hello") :]


def test_without_detokenizing_there_is_no_text(llm):
    params = SamplingParams(temperature=0, detokenize=False, ignore_eos=True)
    assert llm.generate("hello", params)[0].outputs[0].text == ""


def test_without_a_tokenizer_prompts_are_token_ids():
    llm = LLM(FakeRunner(), None)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=1)
    completion = llm.generate([1, 2, 3], params)[0].outputs[0]
    assert completion.token_ids == reference_greedy([1, 2, 3], 4, small_limits())
    assert completion.text == ""
    assert completion.logprobs[0][completion.token_ids[0]].decoded_token is None
    assert llm.score([1, 2, 3]).shape == (2,)
    with pytest.raises(RequestError, match="no tokenizer: give token ids"):
        llm.generate("hello", params)
    with pytest.raises(RequestError, match="has no tokenizer"):
        llm.chat(CHAT, params)
    with pytest.raises(RequestError, match="stop needs a tokenizer"):
        llm.generate([1], SamplingParams(stop="x"))


def test_progress_shows_nothing_where_there_is_no_terminal(llm, capsys):
    llm.generate(["a", "b"], GREEDY, use_tqdm=True)
    assert capsys.readouterr() == ("", "")


def test_options_are_refused_by_name():
    with pytest.raises(OptionError, match="max_num_seqs must be between 1 and 8, not 9"):
        make_llm(max_num_seqs=9)
