"""Artifacts on disk: what loads, and what is refused with which message."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

import llmir
from llmir import artifact, host
from llmir.artifact_writer import locked, writing
from llmir.digests import DigestMemo
from llmir.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ArtifactTargetError,
    ArtifactVersionError,
    OptionError,
    UnknownNameError,
)


@pytest.fixture
def copy(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the tiny artifact that a test may damage."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "copy.llmir"))


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip_byte(path: Path) -> None:
    with path.open("r+b") as handle:
        handle.seek(path.stat().st_size // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 1]))


def test_the_manifest_reads_back_as_it_was_written(tiny_artifact: Path) -> None:
    loaded = llmir.load(tiny_artifact)
    data = json.loads((tiny_artifact / "manifest.json").read_text())
    assert json.loads(json.dumps(dataclasses.asdict(loaded.manifest))) == data
    assert loaded.manifest.model.architecture == "llama"
    assert loaded.manifest.kv.group_windows == (None,)
    assert {p.name for p in tiny_artifact.iterdir()} == {*loaded.manifest.files, "manifest.json"}


def test_transformers_reads_the_tokenizer(tiny_artifact: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_artifact)
    text = "the thing in the hat"
    assert tokenizer(text)["input_ids"] == llmir.LLM(
        tiny_artifact, kv_cache_memory_bytes=1 << 22
    ).get_tokenizer().encode(text)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="is not a directory; make one: llmir compile"):
        llmir.load(tmp_path / "nothing")
    with pytest.raises(ArtifactNotFoundError, match="holds no manifest.json"):
        llmir.load(tmp_path)
    model = tmp_path / "a.gguf"
    model.touch()
    with pytest.raises(ArtifactNotFoundError, match=r"llmir compile .*a\.gguf -o a\.llmir$"):
        artifact.read_manifest(model)


def test_a_newer_version(copy: Path) -> None:
    edit_manifest(copy, lambda m: m.update(format_version=99))
    with pytest.raises(ArtifactVersionError, match="version 99; this llmir reads up to 1: upgrade"):
        llmir.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("kv"),
        lambda m: m.update(surprise=1),
        lambda m: m.update(modules=3),
        lambda m: m["model"].pop("num_heads"),
        lambda m: m.update(format_version="new"),
        lambda m: m["modules"][0].update(extra=1),
        lambda m: m.update(files=[]),
    ],
)
def test_a_manifest_that_is_none(copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit_manifest(copy, change)
    with pytest.raises(ArtifactCorruptError, match="is not a valid manifest"):
        llmir.load(copy)


def test_a_manifest_that_is_not_json(copy: Path) -> None:
    (copy / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(ArtifactCorruptError, match="is not a valid manifest"):
        llmir.load(copy)


def test_a_manifest_cannot_name_files_elsewhere(copy: Path) -> None:
    entry = {"num_bytes": 1, "sha256": "0"}
    edit_manifest(copy, lambda m: m["files"].update({"../../etc/passwd": entry}))
    with pytest.raises(ArtifactCorruptError, match="names a file outside"):
        llmir.load(copy)


@pytest.mark.parametrize("suffix", [".vmfb", ".irpa", "tokenizer.json"])
def test_a_flipped_byte(copy: Path, suffix: str) -> None:
    (path,) = (p for p in copy.iterdir() if p.name.endswith(suffix))
    flip_byte(path)
    with pytest.raises(ArtifactCorruptError, match=rf"{path.name} is damaged: sha256 is [0-9a-f]+"):
        llmir.load(copy)


def test_a_missing_and_a_short_file(copy: Path) -> None:
    weights = copy / "weights.packed.irpa"
    os.truncate(weights, 1000)
    with pytest.raises(ArtifactCorruptError, match="has 1000 bytes, the manifest says"):
        llmir.load(copy)
    weights.unlink()
    with pytest.raises(ArtifactCorruptError, match=r"weights.packed.irpa is missing"):
        llmir.load(copy)


def test_weights_are_hashed_once_per_machine(copy: Path, cache_dir: Path) -> None:
    weights = copy / "weights.packed.irpa"
    llmir.load(copy)
    assert str(weights) in json.loads((cache_dir / "digests.json").read_text())
    # A flip that keeps size, time and inode goes unseen by "first", never by "always".
    stat = weights.stat()
    flip_byte(weights)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    llmir.load(copy)
    llmir.load(copy, verify_weights="never")
    with pytest.raises(ArtifactCorruptError, match="is damaged"):
        llmir.load(copy, verify_weights="always")
    os.utime(weights)
    with pytest.raises(ArtifactCorruptError, match="is damaged"):
        llmir.load(copy)
    with pytest.raises(OptionError, match="verify_weights must be one of first, always, never"):
        llmir.load(copy, verify_weights="sometimes")


def test_a_damaged_memory_of_digests_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "some"
    file.write_bytes(b"abc")
    memo = DigestMemo(tmp_path / "digests.json")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    memo.file.write_text("[nonsense")
    assert memo.sha256(file) == expected
    memo.file.write_text(json.dumps({str(file.resolve()): 7}))
    assert memo.sha256(file) == expected


def test_an_artifact_for_another_architecture(copy: Path) -> None:
    """tests/targets compiles for them, and has what the manifest then says."""
    other = {"target": "cpu:aarch64-neon", "cpu_arch": "aarch64", "cpu_features": ["neon"]}
    edit_manifest(copy, lambda m: m["modules"][0].update(other))
    with pytest.raises(
        ArtifactTargetError, match="cpu:aarch64-neon needs the aarch64 architecture"
    ):
        llmir.LLM(copy)


def test_an_artifact_for_a_newer_cpu(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = host.host_cpu()
    older = dataclasses.replace(here, features=here.features - {"avx2", "fma"})
    monkeypatch.setattr("llmir.host.host_cpu", lambda: older)
    with pytest.raises(
        ArtifactTargetError,
        match=r"runs on this machine: cpu:host needs avx2, fma\. Compile the model here, or for an",
    ):
        llmir.LLM(tiny_artifact)


def test_a_device_the_artifact_is_not_for(tiny_artifact: Path) -> None:
    with pytest.raises(
        ArtifactTargetError, match="no module for device 'cuda://0'; it has: cpu:host"
    ):
        llmir.LLM(tiny_artifact, device="cuda://0")
    with pytest.raises(UnknownNameError, match="unknown target in this artifact 'metal'"):
        llmir.load(tiny_artifact).manifest.module_for("metal")


# -- writing ---------------------------------------------------------------------------


def test_an_error_while_writing_leaves_what_was_there(copy: Path) -> None:
    before = (copy / "manifest.json").read_bytes()

    def fail(directory: Path) -> None:
        (directory / "manifest.json").write_text("{}")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"), writing(copy) as directory:
        fail(directory)
    assert (copy / "manifest.json").read_bytes() == before
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def refused(path: Path) -> str:
    before = sorted(path.iterdir()) if path.is_dir() else path.read_bytes()
    with pytest.raises(OptionError) as error, writing(path):
        raise AssertionError("work began")
    assert (sorted(path.iterdir()) if path.is_dir() else path.read_bytes()) == before
    return str(error.value)


def test_only_artifacts_and_empty_directories_are_replaced(copy: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("1")
    assert "exists and is not an llmir artifact" in refused(thesis)
    # Other programs have a manifest.json as well.
    (thesis / "manifest.json").write_text('{"name": "an extension", "version": "1"}')
    assert "exists and is not an llmir artifact" in refused(thesis)
    assert not artifact.is_artifact(thesis)
    assert "exists and is not an llmir artifact" in refused(thesis / "chapter")
    (copy / "notes.txt").write_text("mine")
    assert "is an artifact, but holds other files too (notes.txt)" in refused(copy)


def test_an_empty_directory_is_taken(
    one_layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = llmir.compile(one_layer, output="x[1].llmir")
    assert made.path == tmp_path / "x[1].llmir"
    monkeypatch.chdir("/")
    assert llmir.LLM(made, kv_cache_memory_bytes=1 << 22).score([5, 6, 7]).shape == (2,)


def test_leftovers_are_removed_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / ".x[1].partial-old").mkdir()
    with writing(tmp_path / "x[1]") as directory:
        (directory / "a").write_text("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x[1]"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with writing(tmp_path / "out"):
            pass
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_two_processes_compile_the_same_model_once(one_layer: Path, tmp_path: Path) -> None:
    """The second waits for the first and finds what it made."""
    code = """
import sys, time
from contextlib import contextmanager
import llmir
@contextmanager
def on_stage(name):
    if name == "tracing the model":
        print("compiling", flush=True)
    yield
print(llmir.compile(sys.argv[1], "cpu", on_stage=on_stage).manifest.created, flush=True)
"""
    command = [sys.executable, "-c", code, one_layer]
    env = {**os.environ, "LLMIR_CACHE": str(tmp_path)}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=200)[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sorted(map(len, said)) == [1, 2], said
    assert said[0][-1] == said[1][-1]
    (artifacts,) = (p for p in tmp_path.iterdir() if p.name == "artifacts")
    assert len(list(artifacts.iterdir())) == 1


def test_a_lock_is_passed_on_and_leaves_no_file(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "a"):
            order.append("second")

    with locked(tmp_path / "a"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


COMPILE = """
import os, resource, signal, sys
from contextlib import contextmanager
import llmir

@contextmanager
def on_stage(name):
    if name == sys.argv[3]:
        {action}
    yield

llmir.compile(sys.argv[1], "cpu", sys.argv[2], on_stage=on_stage)
"""


@pytest.mark.parametrize("stage", ["writing weights", "compiling for cpu:host"])
def test_killed_in_the_middle(stage: str, one_layer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.llmir"
    code = COMPILE.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", code, one_layer, output, stage], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    left = sorted(p.name for p in tmp_path.iterdir())
    assert [n for n in left if "partial" in n], "the killed compile's directory is still there"
    llmir.compile(one_layer, "cpu", output)
    llmir.load(output)
    assert [p.name for p in tmp_path.iterdir()] == ["out.llmir"]


def test_a_full_disk(one_layer: Path, tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the write fails the same way."""
    output = tmp_path / "out.llmir"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    code = COMPILE.format(action=limit)
    done = subprocess.run(
        [sys.executable, "-c", code, one_layer, output, "writing weights"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "OSError: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_writing(
    one_layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(100, 99, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr("llmir.compiler.weights.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"weights.packed.irpa needs \d+ bytes, 1 are free"):
        llmir.compile(one_layer, "cpu", tmp_path / "out.llmir")
    assert list(tmp_path.iterdir()) == []


def test_the_limit_is_really_what_failed() -> None:
    """So that `test_a_full_disk` tests what it says."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
