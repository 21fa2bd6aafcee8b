"""The real frameworks, killed: LLaMA-Factory and verl in mid-training, and the driver while it publishes what they made.

SFT and RL on a CPU are reproducible (launch/plugins/verl_reproducible.py), so a run that was killed must end with the
uninterrupted run's weights, bit for bit. The rest is held by the doubles (test_crashes.py), whose folders are compared with
these.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import doubles
import psutil
import pytest
import test_crashes
from test_driver import QUIET
from test_end_to_end import _lines, _wait_for, argv, entries, run, weights

from synergy import lab, machine, paths
from synergy.driver import execute, handoff, orphans
from synergy.driver.execute import Limits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORDS = [
    "recipe=two_stage",
    "run.keep_work=true",
    "evaluate.runs=1",
    "budget.rl_steps=8",
    "rl.verl.trainer.save_freq=2",
]
SFT_STEPS, RL_STEPS, SAVED = 6, 8, 2
DYING = """
import os, signal, sys
from synergy import run
from synergy.driver import handoff, ledger
export, append = handoff.publish, ledger.append
def die(): os.kill(os.getpid(), signal.SIGKILL)
def mid_export(*a): export(*a); die()
def before_the_line(path, entry): die() if entry.name == {name!r} else append(path, entry)
if {name!r} == "mid-export": handoff.publish = mid_export
else: ledger.append = before_the_line
sys.exit(run.main())
"""


def dies(root: Path, name: str) -> None:
    """A driver that kills itself: when the first checkpoint is written but not published, or before a stage's ledger line."""
    words = [sys.executable, "-c", DYING.format(name=name), *argv(root, *WORDS)[3:]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    assert done.returncode == -signal.SIGKILL, done.stdout[-2000:] + done.stderr[-6000:]


def stopped(
    root: Path, pattern: str, number: int, ready: Callable[[Path], bool] = lambda file: True
) -> list[psutil.Process]:
    """Starts a driver and signals it once a file is there; the processes of the run directory at that moment."""
    driver = subprocess.Popen(argv(root, *WORDS), stdout=subprocess.DEVNULL, cwd=paths.PACKAGE.parent)
    _wait_for(root, pattern, ready=ready)
    there = [found for row in orphans._rows(root / orphans.FILE) if "pid" in row and (found := orphans._same(row))]
    os.kill(driver.pid, number)
    assert driver.wait(timeout=180) == (130 if number == signal.SIGINT else -number)
    return there


def taken(file: Path) -> list[int]:
    """Steps that an attempt's framework took."""
    if file.name == "log.txt":
        return list(range(len(re.findall(r"'loss': ", file.read_text(errors="replace")))))
    return [row["step"] for row in map(json.loads, _lines(file)) if "critic/score/mean" in row["data"]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which recipe=two_stage was killed five times and interrupted once, and then ran to its end."""
    root = tmp_path_factory.mktemp("killed")
    stopped(root, "stages/sft-*/work/out/checkpoint-2/trainer_state.json", signal.SIGKILL)
    dies(root, "mid-export")
    assert list(root.glob("stages/sft-*/.publishing")) and "sft" not in entries(root)
    dies(root, "sft")
    assert list(root.glob("stages/sft-*/output")) and "sft" not in entries(root)
    stopped(root, "stages/rl-*/work/checkpoints/global_step_2/data.pt", signal.SIGINT)
    assert not orphans.sweep(root, grace=1.0), "an interruption leaves no process"
    last = "stages/rl-*/attempt-2/verl_metrics.jsonl"
    there = stopped(root, last, signal.SIGKILL, lambda file: max(taken(file), default=0) >= 5)
    names = " ".join(one.name() for one in there if one.is_running())
    assert len(there) > 8, f"Ray's and vLLM's processes are written down: {names}"
    dies(root, "two_stage")
    assert not [one for one in there if one.is_running() and machine.born(one.pid)], "the next driver ended them"
    run(root, *WORDS)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe, uninterrupted."""
    root = tmp_path_factory.mktemp("whole")
    run(root, *WORDS)
    return root


def test_sft_ends_with_the_same_weights_bit_for_bit(
    killed: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaMA-Factory alone would go on from the base model's weights (see stages/sft.py)."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks/gpu"))
    import by_hand

    one, two = (entries(root)["sft"] for root in (whole, killed))
    assert (one.key, one.digest) == (two.key, two.digest)
    assert weights(whole / one.output) == weights(killed / two.output)
    assert (one.attempt, two.attempt) == (1, 4)
    logs = sorted((killed / two.output).parent.glob("attempt-*/log.txt"))
    steps = sum(len(taken(log)) for log in logs)
    assert SFT_STEPS <= steps <= SFT_STEPS + SAVED and two.figures["steps"] == SFT_STEPS
    by_hand.rerun(logs[0].parents[1], logs[0].parent, tmp_path / "cold")
    handoff.publish(tmp_path / "cold/work/out", lab.BASE, lab.BASE, tmp_path / "cold/model")
    assert weights(tmp_path / "cold/model") == weights(killed / two.output), "a warm start changes nothing"


def test_rl_ends_with_the_same_weights_bit_for_bit(killed: Path, whole: Path) -> None:
    one, two = (entries(root)["two_stage"] for root in (whole, killed))
    assert one.key == two.key and one.attempt < two.attempt
    assert weights(whole / one.output) == weights(killed / two.output)
    passes = [(root / entry.output / "passes.jsonl").read_text() for root, entry in ((whole, one), (killed, two))]
    assert passes[0] == passes[1] and one.digest == two.digest


def test_rl_continues_from_its_checkpoints_and_counts_each_response_once(killed: Path) -> None:
    made = entries(killed)
    rl = made["two_stage"]
    folder = (killed / rl.output).parent
    attempts = [taken(folder / f"attempt-{n}/verl_metrics.jsonl") for n in (1, 2, 3)]
    unlogged = set(range(1, RL_STEPS + 1)) - set().union(*attempts)
    assert all(step % SAVED == 0 for step in unlogged), (
        "verl logs a step after its checkpoint: a kill between costs the row"
    )
    assert attempts[-1][-1] == RL_STEPS and rl.attempt == 4
    for before, after in itertools.pairwise(attempts):
        assert len(set(before) & set(after)) <= SAVED and after[0] % SAVED == 1, "from a checkpoint on"
    assert "trainer.resume_mode='resume_path'" in (folder / "attempt-2/overrides.txt").read_text()
    order = Counter(json.loads((killed / made["order"].output / "order.json").read_text())[: RL_STEPS * 8])
    counts = {row["id"]: row["n"] for row in map(json.loads, _lines(killed / rl.output / "passes.jsonl"))}
    assert counts == {name: 4 * times for name, times in order.items()}, "as in a run that nobody killed"
    assert rl.figures["steps"] == RL_STEPS and handoff.count_changed(killed / rl.output, lab.BASE) > 0


def test_nothing_is_left_and_nothing_told_twice(killed: Path) -> None:
    test_crashes.told_once(killed)
    left = [p.name for p in killed.glob("stages/*/*")]
    assert not [name for name in left if name == ".publishing" or name.startswith(("superseded", "damaged"))]
    assert orphans.sweep(killed, grace=1.0) == 0
    assert re.findall(r"reused", run(killed, *WORDS).stdout)


def test_the_doubles_write_what_the_frameworks_write(killed: Path, tmp_path: Path) -> None:
    with test_crashes.boundaries(doubles.Clock(test_crashes.Killed)):
        todo = test_crashes.todo(tmp_path / "runs", "two_stage")
        execute.run(todo, Limits(keep_work=True), QUIET)
    for kind, name in (("sft", "sft"), ("rl", "two_stage")):
        double = next(step.folder for step in todo.steps if step.stage.name == name)
        real = (killed / entries(killed)[name].output).parent
        assert doubles.shape(double / "work") == doubles.shape(real / "work"), kind
        native = {"sft": "config.yaml", "rl": "overrides.txt"}[kind]
        assert (double / "attempt-1" / native).exists() and (real / "attempt-1" / native).exists()
