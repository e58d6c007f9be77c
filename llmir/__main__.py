"""`python -m llmir` is the llmir command."""

import sys

from llmir.cli import main

if __name__ == "__main__":
    sys.exit(main())
