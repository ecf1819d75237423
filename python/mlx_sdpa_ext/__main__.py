"""`python -m mlx_sdpa_ext`: the command line."""

import sys

from mlx_sdpa_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
