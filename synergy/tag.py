"""``synergy tag``: difficulty levels, by 16 runs of the base model and the paper's thresholds (12, 8, 5, 2 right ones).

  synergy tag data.source=FOLDER data.train=FILE model.path=MODEL    of the questions in FOLDER/FILE, JSONL of records; ends
                                                                     with a copy that has ``passes`` (of 16) and ``level``
  synergy tag recipe.questions=benchmarks                            of evaluate.benchmarks; ends with a file of passes for
                                                                     each, which evaluate.benchmarks.N.levels takes

The same as ``synergy run recipe=tag``: what is finished is reused, and the last line says where the result lies.
"""

from __future__ import annotations

import sys

from synergy import cli, run


def main() -> int:
    if any(word.lstrip("+~").startswith("recipe=") for word in sys.argv[1:]):
        return cli.tell("tag is a recipe itself; leave recipe= out, or use synergy run", 2)
    sys.argv.insert(1, "recipe=tag")
    return cli.with_config(run.action, __doc__)


if __name__ == "__main__":
    sys.exit(main())
