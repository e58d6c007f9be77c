"""Grammars that may take the library more time or memory than there is.

What bounds its work is counted between steps of it, and a step that intersects many regular
expressions, or divides by a large number, is not bounded: a schema of one kilobyte takes all
of a machine's memory.  Those that could are compiled in a process of their own first.
"""

from __future__ import annotations

import subprocess
import sys

from llmir.errors import RequestError

MAX_REGEXES = 8
MAX_CHARACTERS = 32_768
MAX_SECONDS = 10
MAX_BYTES = 1 << 30

CHILD = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
except (ImportError, ValueError):  # not on Windows, nor on macOS: the time alone is bounded
    pass
from llguidance import LLMatcher, LLTokenizer
LLMatcher(LLTokenizer("byte"), sys.stdin.buffer.read().decode(), log_level=0).compute_bitmask()
"""


def is_suspicious(grammar: str) -> bool:
    """Whether many regular expressions may have to hold at once, a number must be a multiple, or
    there is simply much of it.

    Counts words in llguidance's format, and errs to the side of suspicion.
    """
    if len(grammar) > MAX_CHARACTERS:
        return True
    regexes = grammar.count('"pattern"') + grammar.count('"format"')
    joined = any(f'"{word}"' in grammar for word in ("allOf", "anyOf", "oneOf", "$ref"))
    in_lark = "%json" in grammar or grammar.count("&") + grammar.count("~") > MAX_REGEXES
    return '"multipleOf"' in grammar or (joined and regexes > MAX_REGEXES) or in_lark


def check_apart(grammar: str, kind: str) -> None:
    """Compile a grammar in another process, of bounded time and memory.

    What the library says about it is not asked here.  Raises RequestError where it comes to
    no end.
    """
    code = CHILD.format(bytes=MAX_BYTES)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            input=grammar.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=MAX_SECONDS,
            check=False,
        )
        ended = done.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise RequestError(
            f"structured_outputs.{kind}: takes more than {MAX_SECONDS} s or "
            f"{MAX_BYTES >> 20} MiB to compile: use fewer patterns, or smaller multiples"
        )
