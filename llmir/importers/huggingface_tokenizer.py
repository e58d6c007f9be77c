"""The tokenizer and generation settings of a Hugging Face directory.

What `AutoTokenizer` would merge from several files is merged here once, so that
an artifact carries a tokenizer.json and one complete tokenizer_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmir.errors import UnsupportedModelError
from llmir.importers.base import TokenizerFiles
from llmir.importers.huggingface_config import default_special_ids
from llmir.importers.huggingface_json import Fields, parse_object, read_text

# Files that only make sense beside a vocabulary: their presence without tokenizer.json
# means a tokenizer of another kind, or an incomplete download.
_OTHER_TOKENIZERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
)


def read_tokenizer(
    directory: Path, config: Fields
) -> tuple[TokenizerFiles | None, tuple[Path, ...]]:
    """(tokenizer, files read); None where the directory has no trace of a tokenizer.

    Raises UnsupportedModelError where there is one without tokenizer.json,
    CorruptModelError where a file is not what its name says.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        found = [name for name in _OTHER_TOKENIZERS if (directory / name).exists()]
        if not found:
            return None, ()
        raise UnsupportedModelError(
            f"{directory}: has {', '.join(found)} but no tokenizer.json, the only form that "
            "llmir reads. Convert it with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    text = read_text(path)
    parse_object(path, text)
    files = [path]

    tokenizer_config = _read_optional(directory / "tokenizer_config.json", files)
    if "added_tokens_decoder" not in tokenizer_config:
        # Directories older than transformers 4.34 keep special tokens apart, and there
        # they win; newer ones repeat them, and there they are ignored.
        special = _read_optional(directory / "special_tokens_map.json", files)
        tokenizer_config |= {key: _token_text(value) for key, value in special.items()}
    template = directory / "chat_template.jinja"
    if template.is_file():
        tokenizer_config["chat_template"] = read_text(template)
        files.append(template)

    generation = _read_optional(directory / "generation_config.json", files)
    _complete_special_ids(generation, config, str(directory / "generation_config.json"))
    tokenizer = TokenizerFiles(
        tokenizer_json=text, tokenizer_config=tokenizer_config, generation_config=generation
    )
    return tokenizer, tuple(files)


def _read_optional(path: Path, files: list[Path]) -> dict[str, Any]:
    """The object in `path`, {} if it is not there; `files` gains the path if it is."""
    if not path.is_file():
        return {}
    files.append(path)
    return parse_object(path, read_text(path))


def _token_text(value: Any) -> Any:
    """An AddedToken written as an object becomes its text; its flags are in tokenizer.json."""
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return value["content"]
    if isinstance(value, list):
        return [_token_text(item) for item in value]
    return value


def _complete_special_ids(generation: dict[str, Any], config: Fields, where: str) -> None:
    """Add config.json's bos and eos ids (or the model type's) where `generation` has none."""
    defaults = default_special_ids(config)
    for key in ("bos_token_id", "eos_token_id"):
        source = where
        if key not in generation:
            source = config.where
            generation[key] = config.data.get(key, defaults[key])
        ids = generation[key]
        if ids is None:
            del generation[key]
            continue
        for item in ids if isinstance(ids, list) else [ids]:
            if type(item) is not int or item < 0:
                raise Fields({}, source).error(
                    f"{key} must be a token id or a list of token ids, not {ids!r}"
                )
