"""``python -m sslpath``: the command line, where the script ``sslpath`` is not on the path."""

import sys

from sslpath.cli import main

if __name__ == "__main__":
    sys.exit(main())
