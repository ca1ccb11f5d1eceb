"""One experiment by name: its CSV and its figure."""

import sys

from .experiment import main

if __name__ == "__main__":
    sys.exit(main())
