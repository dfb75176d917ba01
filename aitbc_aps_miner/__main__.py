"""`python -m aitbc_aps_miner config.toml` and the console script."""

import sys

from aitbc_aps_miner.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
