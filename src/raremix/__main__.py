"""Lets the command line run as ``python -m raremix``."""

import sys

from raremix.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
