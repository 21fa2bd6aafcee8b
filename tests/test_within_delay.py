"""Traces that wait for SFT: first in, first out, none lost and none used twice, wherever the run is killed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("plugins_importable")
KEPT = 2
"""Checkpoints that verl keeps."""


class Run:
    """verl's part: a checkpoint every so many steps, the newest kept; what each step found and used, as the weights know it."""

    def __init__(self, folder: Path, every: int, size: int) -> None:
        self.folder, self.every, self.size = folder, every, size
        self.found, self.used = dict[int, list[str]](), dict[int, list[str]]()
        self.step, self.attempt = 0, 0
        self.start()

    def start(self) -> None:
        from verl_within_delay import Waiting

        self.step = max(
            (self._number(p) for p in self.folder.glob("global_step_*") if (p / "actor").exists()), default=0
        )
        self.attempt += 1
        self.waiting = Waiting(self.folder / "waiting", self.step)
        for history in (self.found, self.used):
            for later in [step for step in history if step > self.step]:
                del history[later]

    def take(self, found: int, killed: str) -> None:
        """A step that finds so many. killed: before the list is written, while verl trains, after its checkpoint, or not."""
        step = self.step + 1
        names = [f"{self.attempt}/{step}/{i}" for i in range(found)]
        for name in names:
            self.waiting.add(step, {"name": name})
        used = [row["name"] for row in self.waiting.take(found * 2 if len(self.waiting) >= self.size else 0)]
        if killed == "before":
            return self.start()
        self.waiting.save(step)
        if killed == "training":
            return self.start()
        self.step, self.found[step], self.used[step] = step, names, used
        if step % self.every == 0:
            (self.folder / f"global_step_{step}/actor").mkdir(parents=True)
            for old in sorted(map(self._number, self.folder.glob("global_step_*")))[:-KEPT]:
                shutil.rmtree(self.folder / f"global_step_{old}/actor", ignore_errors=True)
        return self.start() if killed == "after" else None

    @staticmethod
    def _number(folder: Path) -> int:
        return int(folder.name.rsplit("_", 1)[1])


STEP = st.tuples(st.integers(0, 3), st.sampled_from(("no", "no", "no", "before", "training", "after")))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=1, max_size=14), st.integers(1, 3), st.integers(1, 5))
def test_whatever_is_killed_each_trace_is_used_once(steps: list[tuple[int, str]], every: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), every, size)
        for found, killed in steps:
            run.take(found, killed)
        rest = [row["name"] for row in run.waiting.take(100)]
        flat = [name for step in sorted(run.found) for name in run.found[step]]
        assert [name for step in sorted(run.used) for name in run.used[step]] + rest == flat, (
            "in their order, each once"
        )


def test_what_no_checkpoint_needs_is_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path, every=2, size=2)
    for _ in range(8):
        run.take(2, "no")
    left = sorted(file.name for file in (tmp_path / "waiting").iterdir())
    assert [name for name in left if name.endswith(".json")] == ["step_4.json", "step_6.json", "step_8.json"]
    assert not [name for name in left if name.endswith(".pt")], "all used"


def test_a_checkpoint_without_its_list_is_told(tmp_path: Path) -> None:
    from verl_within_delay import Waiting

    with pytest.raises(FileNotFoundError, match="waited after step 4: begin anew"):
        Waiting(tmp_path / "waiting", 4)


def test_traces_are_spread_over_the_free_rows() -> None:
    from verl_within_rows import spread

    assert spread([0, 1, 2, 3, 8, 9, 10, 11], 4) == [0, 2, 8, 10] and spread([5], 1) == [5] and spread([1, 2], 0) == []
