"""``python -m longlens``."""

import sys

from longlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
