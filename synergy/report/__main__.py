"""``python -m synergy.report``."""

import sys

from synergy.report import main

if __name__ == "__main__":
    sys.exit(main())
