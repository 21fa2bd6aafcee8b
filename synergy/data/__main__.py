from __future__ import annotations

import sys

from synergy.data import main

if __name__ == "__main__":
    sys.argv[0] = "synergy data"
    sys.exit(main())
