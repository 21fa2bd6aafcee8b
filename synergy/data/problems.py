"""What can be wrong with a question, and what is done about it: a policy per check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synergy.errors import UserError

CHECKS = {
    "row": "a row that can't be read as a record",
    "id": "an id that is missing or used twice (repair: a new one)",
    "roles": "turns of a conversation that are not user, then assistant",
    "image": "an image that can't be opened",
    "unsafe": "an image or archive that is refused: outside the media folder, a bomb, or of absurd size",
    "small": "an image with a side below the model's patch (repair: enlarged)",
    "marks": "<image> marks that don't fit the images (repair: taken out of the text)",
    "answer": "a gold answer that can't be judged (repair: the answer of its trace)",
    "trace": "a trace whose final answer is not the gold answer (repair: without the trace)",
    "response": "a trace over sft.config.cutoff_len (repair: without the trace)",
    "prompt": "a prompt over rl.verl.data.max_prompt_length",
    "overlap": "a question that a benchmark or the validation split asks too",
    "overlap_image": "an image that a benchmark shows too, under another question",
}
"""Check -> what it finds, and how it is repaired if it can be."""
POLICIES = ("fail", "drop", "repair")
"""fail: nothing is written. drop: the question is left out and listed. repair: mended where it can be, else dropped."""


@dataclass(frozen=True)
class Problem:
    """check: its name. column: of the source. repair: fields of the record with the values that mend it; None: nothing does."""

    check: str
    column: str
    what: str
    repair: Mapping[str, Any] | None = None

    def row(self) -> list[Any]:
        return [self.check, self.column, self.what, self.repair]


def policies(given: Mapping[str, str]) -> dict[str, str]:
    """The policy of every check. Raises UserError for a check or policy that there is none of."""
    for name, policy in given.items():
        if name not in CHECKS:
            raise UserError(f"data.checks.{name}: no such check; there are {', '.join(CHECKS)}")
        if policy not in POLICIES:
            raise UserError(f"data.checks.{name}={policy}: one of {', '.join(POLICIES)}")
    return {name: given.get(name, "fail") for name in CHECKS}
