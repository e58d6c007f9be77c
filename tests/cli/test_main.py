"""The command as a whole: help, errors as one line, exit codes, pipes and Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from cli.helpers import LLMIR, Llmir, spawn

import llmir as package
from llmir import errors
from llmir.cli import COMMANDS, EXIT_CODES, cli
from llmir.cli.exit_codes import exit_code_of

SAMPLING = {"--temperature", "--top-k", "--top-p", "--seed", "--max-tokens", "--stop"}
MODEL = {
    "--target",
    "--weights",
    "--device",
    "--threads",
    "--kv-cache-memory",
    "--device-memory-fraction",
    "--verify-weights",
}
# The options there are: a new one is added here on purpose, and none is lost by accident.
OPTIONS = {
    "run": {"--system", "--raw", "--json", *SAMPLING, *MODEL},
    "chat": {"--system", *SAMPLING, *MODEL},
    "serve": {
        "--host",
        "--port",
        "--uds",
        "--served-model-name",
        "--tool-call-parser",
        "--api-key",
        "--api-key-file",
        "--allowed-origins",
        "--chat-template",
        "--page",
        "--log-level",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--kv-cache-dtype",
        "--speculative-config",
        "--scheduling-policy",
        "--admission",
        "--max-prefill-per-decode",
        "--enable-prefix-caching",
        "--max-waiting",
        "--max-logprobs",
        "--max-body-size",
        "--request-timeout",
        "--shutdown-timeout",
        *MODEL,
    },
    "compile": {
        "--output",
        "--target",
        "--weights",
        "--kv-dtype",
        "--fusion",
        "--page-size",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--activations",
        "--op-priority",
        "--op-priority-file",
        "--print-ir-after",
        "--json",
    },
    "bench latency": {
        "--prompt-lens",
        "--depths",
        "--batches",
        "--repeats",
        "--device",
        "--threads",
        "--kv-cache-memory",
        "--json",
    },
    "bench op": {
        "--prompt-lens",
        "--depths",
        "--batches",
        "--device",
        "--threads",
        "--kv-cache-memory",
        "--json",
    },
    "inspect": {"--tensors", "--verify-weights", "--json"},
    "targets": {"--json"},
    "verify": {
        "--devices",
        "--against",
        "--reference",
        "--reference-model",
        "--prompts",
        "--built-in",
        "--max-tokens",
        "--max-logit-diff",
        "--max-kl",
        "--min-top1",
        "--margin",
        "--ops",
        "--latency",
        "--threads",
        "--kv-cache-memory",
        "--verify-weights",
        "--output",
        "--json",
    },
    "export-inputs": {"--prompt", "--output", "--raw", "--target", "--json"},
    "opt": {"--passes", "--output", "--print-ir-after", "--list"},
}


def command_of(name: str) -> click.Command:
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def test_help_lists_the_commands_and_exit_codes(llmir: Llmir) -> None:
    text = llmir.ok("--help")
    for name, (_, sentence) in COMMANDS.items():
        assert f"  {name} " in text
        assert " ".join(sentence.split()) in " ".join(text.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code} " in text
        assert meaning in text


@pytest.mark.parametrize("name", OPTIONS)
def test_a_commands_options(name: str) -> None:
    options = [p for p in command_of(name).params if isinstance(p, click.Option)]
    assert {max(option.opts, key=len) for option in options} == OPTIONS[name]
    for option in options:
        assert option.help, f"{option.opts} has no help"


@pytest.mark.parametrize(
    "name", [*(name for name in COMMANDS if name != "bench"), "bench latency", "bench op"]
)
def test_every_command_explains_itself(llmir: Llmir, name: str) -> None:
    text = llmir.ok(*name.split(), "--help")
    assert text.startswith(f"Usage: llmir {name}")
    assert f"llmir {name}" in text.partition("Examples:")[2], "no example"
    assert max(map(len, text.splitlines())) <= 100


def test_the_options_of_all_commands_are_listed_here() -> None:
    assert {name.split()[0] for name in OPTIONS} == set(COMMANDS)


def test_version(llmir: Llmir) -> None:
    assert llmir.ok("--version") == f"llmir {package.__version__}\n"


def test_no_command_is_an_error_that_helps(llmir: Llmir) -> None:
    result = llmir()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: llmir")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "unknown command 'rnu'; known commands: run, chat, serve, compile, "),
        (["run", "--tempreature", "0", "x"], "no such option '--tempreature'"),
        (["run"], "missing argument 'MODEL' (see llmir run --help)"),
        (["run", "m", "p", "--top-k", "many"], "invalid value for '--top-k'"),
        (["run", "m", "p", "--kv-cache-memory", "lots"], "'lots' is not a size such as 512M"),
        (["run", "m", "p", "--raw", "--system", "s"], "--system needs the chat template"),
        (["compile", "m", "--weights", "q9"], "'q9' is not one of 'keep', "),
    ],
)
def test_usage_errors(llmir: Llmir, arguments: list[str], message: str) -> None:
    code, text = llmir.error(*arguments)
    assert code == 2
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.OptionError("x"), 2),
        (errors.UnknownNameError("op", "x", []), 2),
        (errors.CorruptModelError("x"), 3),
        (errors.InPlaceError("x"), 4),
        (errors.ArtifactTargetError("x"), 5),
        (errors.DeviceError("x"), 6),
        (errors.RequestError("x"), 7),
        (OSError(28, "No space left on device"), 8),
    ],
)
def test_every_family_of_errors_has_its_code(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code
    assert code in EXIT_CODES


def test_errors_of_each_kind(llmir: Llmir, tiny_artifact: Path, tmp_path: Path) -> None:
    """One real error of each kind, as a user meets it."""
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGML" + bytes(64))
    wrong_mlir = tmp_path / "wrong.mlir"
    wrong_mlir.write_text("func.func @f( {")
    for code, part, arguments in [
        (2, "known: cpu, cpu:aarch64", ["compile", wrong, "--target", "cpu:z80"]),
        (2, "unknown op 'matmul'", ["compile", wrong, "--op-priority", "matmul=portable"]),
        (2, "fixed when an artifact is compiled", ["run", tiny_artifact, "x", "--target", "cpu"]),
        (2, "is an artifact already; run it: ", ["compile", tiny_artifact]),
        (2, "threads must be", ["run", tiny_artifact, "x", "--threads", "0"]),
        (3, "nowhere.gguf", ["run", tmp_path / "nowhere.gguf", "x"]),
        (3, "wrong.gguf", ["compile", wrong]),
        (4, "not valid MLIR", ["opt", wrong_mlir]),
        (5, "no artifact at", ["inspect", tmp_path]),
        (5, "no module for device 'cuda'", ["run", tiny_artifact, "x", "--device", "cuda"]),
        (
            6,
            "no device 'local-task://7'",
            ["run", tiny_artifact, "x", "--device", "local-task://7"],
        ),
        (7, "temperature must be", ["run", tiny_artifact, "x", "--temperature", "-1"]),
        (7, "the prompt is empty", ["run", tiny_artifact, ""]),
        (8, "No such file or directory", ["opt", tmp_path / "nowhere.mlir"]),
        (
            8,
            "Not a directory",
            ["export-inputs", tiny_artifact, "--prompt", "x", "-o", wrong / "d"],
        ),
    ]:
        found, text = llmir.error(*arguments)
        assert part in text
        assert found == code, text


def test_a_full_disk_is_said_plainly(
    llmir: Llmir, monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere/weights.irpa")

    monkeypatch.setattr("llmir.api.compile", full)
    code, text = llmir.error("compile", "model.gguf")
    assert (code, text) == (8, "No space left on device: /somewhere/weights.irpa")


def test_help_and_a_cached_run_load_neither_torch_nor_the_compiler(tiny_artifact: Path) -> None:
    code = (
        "import sys\n"
        "from llmir.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert 'numpy' not in sys.modules, 'help is slow'\n"
        f"assert main(['run', {str(tiny_artifact)!r}, 'Hi', '--max-tokens', '1']) == 0\n"
        "heavy = {'torch', 'iree.compiler', 'rich', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error(tiny_artifact: Path) -> None:
    """As in `llmir inspect … | head -0`."""
    with spawn("inspect", tiny_artifact, "--tensors") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


READS_STDIN = (["0", "0x0"], ["63", "0x0"])  # the system call of x86-64 and of 64-bit Arm, file 0


def heed_interrupts() -> None:
    """Tests that a shell runs in the background are born deaf to Ctrl-C, and so are their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c() -> None:
    with spawn("opt", preexec_fn=heed_interrupts) as process:
        assert process.stderr is not None
        # It waits for its standard input: by then the command's modules are loaded.
        waits = Path(f"/proc/{process.pid}/syscall")
        deadline = time.monotonic() + 60
        while waits.read_text().split()[:2] not in READS_STDIN:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"error: interrupted\n"
    assert process.returncode == 130


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).parent / "llmir"
    arguments = ["opt", "-p", "no-such-pass", "/dev/null"]
    installed, here = (
        subprocess.run([*c, *arguments], capture_output=True, text=True, check=False)
        for c in ([str(command)], LLMIR)
    )
    assert installed.returncode == here.returncode == 2
    assert installed.stderr == here.stderr
