"""Tokenizer directories, against transformers."""

import pytest
from transformers import AutoTokenizer

from llmir.engine import Tokenizer
from llmir.errors import ArtifactCorruptError, ArtifactNotFoundError, RequestError, UnknownNameError

from .tiny_tokenizers import CONFIG, byte_fallback, byte_level, save

TEXTS = ["", "the cat", "  spaces ", "日本語😀\x00\n\t", "<|im_start|>user\nx<|im_end|>", "</s>the"]
LLAMA = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (byte_level, CONFIG),
        (byte_level, {**CONFIG, "add_bos_token": True}),
        (byte_level, {**CONFIG, "add_bos_token": True, "add_eos_token": True}),
        (byte_fallback, {**LLAMA, **GENERIC, "eos_token": "</s>"}),
        (byte_fallback, {**LLAMA, **GENERIC, "eos_token": "</s>", "add_bos_token": False}),
    ],
)
def test_like_transformers(tmp_path, make, config):
    directory = save(tmp_path / "t", make(), config)
    ours, theirs = Tokenizer.from_dir(directory), AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


def test_a_token_given_as_a_dict():
    tokenizer = Tokenizer(byte_fallback(), LLAMA)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_truncation_saved_with_a_tokenizer_is_switched_off():
    backend = byte_level()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    assert len(Tokenizer(backend).encode("zxyzxyzxy")) == 9


def test_the_text_of_one_token_has_its_space():
    tokenizer = Tokenizer(byte_fallback())
    the = tokenizer.backend.token_to_id("▁the")
    assert tokenizer.decode([the]) == "the"
    assert tokenizer.token_text(the) == " the"
    assert tokenizer.token_text(2) == "</s>"
    assert tokenizer.token_text(10**6) == ""


def test_bad_directories(tmp_path):
    with pytest.raises(ArtifactNotFoundError, match=r"no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactCorruptError, match="is not a tokenizer"):
        Tokenizer.from_dir(tmp_path)
    save(tmp_path, byte_level(), {})
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ArtifactCorruptError, match="is not JSON"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ArtifactCorruptError, match="must hold a JSON object"):
        Tokenizer.from_dir(tmp_path)


def test_a_lone_surrogate_is_refused():
    with pytest.raises(RequestError, match="Unicode"):
        Tokenizer(byte_level()).encode("a\ud800")


def test_which_chat_template(tmp_path):
    several = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
        {"name": "rag", "template": "rag"},
    ]
    directory = save(tmp_path, byte_level(), {"chat_template": several})
    tokenizer = Tokenizer.from_dir(directory)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(messages) == "plain"
    assert tokenizer.apply_chat_template(messages, tools=[]) == "tools"
    assert tokenizer.apply_chat_template(messages, chat_template="rag") == "rag"
    assert tokenizer.apply_chat_template(messages, chat_template="{{ 1 + 1 }}") == "2"
    (directory / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.from_dir(directory).apply_chat_template(messages) == "from the file"
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(byte_level()).apply_chat_template(messages)
    with pytest.raises(UnknownNameError, match="rag"):
        Tokenizer(byte_level(), {"chat_template": several[2:]}).apply_chat_template(messages)
