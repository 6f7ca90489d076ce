"""`python -m pirn`."""

import sys

from pirn.cli import main

if __name__ == "__main__":
    sys.exit(main())
