"""llmir compiles large language models with IREE and serves them."""

from __future__ import annotations

__version__ = "0.1.0"
