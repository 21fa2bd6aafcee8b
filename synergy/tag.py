"""``python -m synergy.tag data.source=FOLDER data.train=FILE model.path=MODEL``: difficulty levels of any set of questions.

The same as ``synergy run recipe=tag``; what it ends with is a copy of the records with ``passes`` (of 16) and ``level``.
"""

from __future__ import annotations

import sys

from synergy import cli, run


def main() -> int:
    if not any(word.startswith("recipe=") for word in sys.argv):
        sys.argv.insert(1, "recipe=tag")
    return cli.with_config(run.action)


if __name__ == "__main__":
    sys.exit(main())
