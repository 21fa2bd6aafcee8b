"""The real thing, small: LLaMA-Factory, verl, vLLM and VLMEvalKit take turns on the tiny model. Minutes, not seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_private import PLANTED, found

from reward_fns.accuracy_format import compute_score
from synergy import lab, paths
from synergy.data import records
from synergy.data.prompt import query
from synergy.driver import checkpoint, ledger, process
from synergy.driver.ledger import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

SMALL = [
    "data.sizes={train: 96, val: 8, bench: 12}",
    "evaluate.runs=2",
    "sample.n=4",
    "sft.config.num_train_epochs=2",
    "sft.config.save_steps=2",
    "sft.config.logging_steps=1",
    "budget.rl_steps=9",
    "rl.verl.data.train_batch_size=8",
    "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "rl.verl.actor_rollout_ref.rollout.n=4",
    "rl.verl.trainer.save_freq=1",
]


def argv(root: Path, *words: str) -> list[str]:
    flags = [word for word in words if word.startswith("-")]
    return [
        sys.executable,
        "-m",
        "synergy.run",
        *flags,
        f"run.dir={root}",
        *SMALL,
        *(w for w in words if w not in flags),
    ]


def run(root: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **PLANTED}
    done = subprocess.run(argv(root, *words), capture_output=True, text=True, cwd=paths.PACKAGE.parent, env=env)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def entries(root: Path) -> dict[str, Entry]:
    return {entry.name: entry for entry in ledger.read(root / "ledger.jsonl").values()}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: b"".join(checkpoint.chunks(t)) for name, t in checkpoint.read(folder).items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which recipe=progressive ran to its report."""
    root = tmp_path_factory.mktemp("progressive")
    done = run(root, "recipe=progressive")
    report = Path(re.findall(r"^report: (.+)$", done.stdout, re.M)[-1])
    assert report.exists()
    return root


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A run directory in which recipe=sft ran to its report, and the weights that it made."""
    root = tmp_path_factory.mktemp("sft")
    run(root, "recipe=sft")
    return root, weights(root / entries(root)["sft"].output)


def test_frameworks_take_turns_and_every_hand_off_is_whole(finished: Path) -> None:
    made = entries(finished)
    chain = ["sft-1", "rl-1", "sft-2", "rl-2", "rl-3"]
    assert set(chain) <= set(made)
    base = weights(lab.BASE)
    for before, after in zip(["base", *chain], chain, strict=False):
        model = finished / made[after].output
        now = weights(model)
        assert set(now) == set(base), "published names, in every stage"
        then = base if before == "base" else weights(finished / made[before].output)
        changed = {name for name in now if now[name] != then[name]}
        assert changed or "skipped" in made[after].figures
        assert not [name for name in changed if name.startswith("visual.")], (
            "the vision tower is frozen in SFT and in RL"
        )
        for file in ("tokenizer.json", "config.json"):
            assert (model / file).read_bytes() == (lab.BASE / file).read_bytes()


def test_zero_pass_questions_are_told_by_rollouts_and_get_prefixes(finished: Path) -> None:
    made = entries(finished)
    first, second = (finished / made[f"mix-{n}"].output for n in (1, 2))
    whole = json.loads((first / "sft/train.json").read_text())
    assert made["mix-1"].figures["zero_pass"] == len(whole) > 0
    parts = json.loads((second / "sft/train.json").read_text())
    traces = {json.loads(line)["trace"] for line in _lines(finished / made["data"].output / "records/train.jsonl")}
    assert all(row["messages"][1]["content"] in traces for row in whole)
    for row in parts:
        part = row["messages"][1]["content"]
        assert part not in traces and any(trace.startswith(part) for trace in traces)
    counts = [json.loads(line) for line in _lines(finished / made["rl-1"].output / "passes.jsonl")]
    assert counts and all(row["n"] == 4 for row in counts), "four rollouts of every question were counted"


def test_the_report_has_accuracy_and_length_per_level(finished: Path) -> None:
    found = json.loads(next(finished.glob("reports/*/report.json")).read_text())
    rows = [row for row in found["rows"] if row["level"] == "all" and row["benchmark"] != "average"]
    assert {row["model"] for row in rows} == {"base", "progressive"}
    assert {row["benchmark"] for row in rows} == {"DigitsOpen", "DigitsChoice"}
    assert all(row["n"] == 12 and 0 <= row["accuracy"] <= 100 and row["length_mean"] > 0 for row in rows)


def test_the_same_command_reuses_everything_within_seconds(finished: Path) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    started = time.monotonic()
    done = run(finished, "recipe=progressive")
    assert time.monotonic() - started < 60
    assert done.stdout.count("reused") == len(entries(finished))
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_no_secret_of_the_environment_is_written_anywhere(finished: Path) -> None:
    assert found(finished) == []


def test_no_process_is_left(finished: Path) -> None:
    for entry in entries(finished).values():
        assert not list(process.marked(str((finished / entry.output).parent)))


def test_a_model_s_own_right_responses_train_the_next_model(taught: tuple[Path, dict[str, bytes]]) -> None:
    """recipe=distill on the model of recipe=sft, and its folder as the data source of another recipe=sft."""
    root, before = taught
    told = run(root, "recipe=distill").stdout
    assert told.count("reused") == 2, "questions and teacher"
    made = entries(root)
    out = root / made["dataset"].output
    assert str(out) in told.splitlines()[-1]
    responses = [json.loads(line) for line in _lines(root / made["responses"].output / "responses.jsonl")]
    distilled = {record.id: str(record.trace) for record in records.read(out / "train.jsonl")}
    dropped = {(row["id"], row["index"]): row["why"] for row in map(json.loads, _lines(out / "dropped.jsonl"))}
    assert len(responses) == 96 * 4 == len(distilled) + len(dropped), "each response is kept, or has its reason"
    for row in responses:
        if row["response"] == distilled.get(row["id"]):
            assert row["acc"] == 1 and row["finish_reason"] == "stop"
        if row["acc"] == 0:
            assert dropped[row["id"], row["index"]] == "wrong answer"
    right = {row["id"] for row in responses if row["acc"] == 1 and dropped.get((row["id"], row["index"])) != "empty"}
    assert set(distilled) <= right and len(distilled) == made["dataset"].figures["kept_rows"] > 16
    assert entries(root)["responses"].identity["inputs"]["model"] in (out / "README.md").read_text()
    told = run(root, "recipe=sft", f"data.source={out}", "evaluate.source=lab").stdout
    assert re.search(r"eval-base: reused", told) and Path(re.findall(r"^report: (.+)$", told, re.M)[-1]).exists()
    after = entries(root)["sft"]
    assert after.key != made["sft"].key and weights(root / after.output) != before
    rows = json.loads((root / entries(root)["data"].output / "sft/train.json").read_text())
    assert [row["messages"][1]["content"] for row in rows] == list(distilled.values())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run directory in which three more recipes ran to their reports, and what they told. With verl's own dump of plain RL's
    rollouts in ``dump``."""
    root = tmp_path_factory.mktemp("others")
    word = f"+rl.verl.trainer.rollout_data_dir={root}/rollouts"
    told = run(root, "recipe=model_merging", "recipe.ratios=[0.25]", word).stdout
    (root / "rollouts").rename(root / "dump")
    return root, told + run(root, "-m", "recipe=data_mixing,interleaved", word).stdout


def test_the_other_recipes_run_to_their_reports_and_share_stages(others: tuple[Path, str]) -> None:
    """Every kind of stage at least once on the real frameworks: mergekit, and SFT on what the RL model sampled."""
    root, told = others
    reports = [Path(found) for found in re.findall(r"^report: (.+)$", told, re.M)]
    models = [{row["model"] for row in json.loads((r.parent / "report.json").read_text())["rows"]} for r in reports]
    assert [found - {"base"} for found in models] == [{"model_merging"}, {"data_mixing"}, {"interleaved"}]
    made = entries(root)
    stages = [entry.name for entry in made.values()]
    assert stages.count("rl") == stages.count("data") == stages.count("eval-base") == 1, "made once for all three"
    assert made["merge-0.25"].figures["verified"] == len(weights(lab.BASE))
    assert made["mixture"].figures["responses"] == 96 * 4
    assert {"sft-1", "rl-1", "rl-2", "rl-3"} <= set(made), "interleaved took turns"


def test_recorded_pass_counts_are_those_of_verl_s_own_dump(others: tuple[Path, str]) -> None:
    """verl writes what it generated; judged anew, each step's groups have the accuracies that the reward recorded."""
    root, made = others[0], entries(others[0])
    questions = records.read(root / made["data"].output / "records/train.jsonl")
    choices = {(query(r.question, r.choices, lab.INSTRUCTION), r.answer): r.choices for r in questions}
    judged: dict[str, list[float]] = {}
    for file in sorted((root / "dump").glob("*.jsonl"), key=lambda f: int(f.stem)):
        for line in _lines(file):
            row = json.loads(line)
            asked = next(
                found for (text, gold), found in choices.items() if text in row["input"] and gold == row["gts"]
            )
            told = compute_score("digits", row["output"], row["gts"], {"choices": asked})
            assert told["score"] == pytest.approx(row["score"], abs=1e-6), row
            judged.setdefault(f"{file.stem} {row['uid'].rsplit('_', 2)[0]}", []).append(told["acc"])
    counts = [json.loads(line) for line in _lines(root / made["rl"].output / "passes.jsonl")]
    assert len(counts) == 9 * 8 and all(row["n"] == 4 for row in counts)
    assert sorted(row["passes"] for row in counts) == sorted(sum(accs) for accs in judged.values())


def test_tagging_ends_with_levels_and_is_reused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "synergy.tag", f"run.dir={tmp_path}", "data.sizes={train: 12, val: 1, bench: 1}"]
    words += ["sample.replicas=2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=paths.PACKAGE.parent, check=True)
    out = Path(done.stdout.splitlines()[-1].rpartition(": ")[2])
    tagged = records.read(out / "tagged.jsonl")
    assert len(tagged) == 12 and all(r.passes is not None and r.level == records.level(r.passes) for r in tagged)
    responses = _lines(tmp_path / entries(tmp_path)["runs"].output / "responses.jsonl")
    assert len({(row["id"], row["index"]) for row in map(json.loads, responses)}) == len(responses) == 12 * 16
    again = subprocess.run(words, capture_output=True, text=True, cwd=paths.PACKAGE.parent, check=True)
    assert again.stdout.count("reused") == 3


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _wait_for(
    root: Path, pattern: str, seconds: float = 600, ready: Callable[[Path], bool] = lambda file: True
) -> None:
    end = time.time() + seconds
    while not any(ready(file) for file in root.glob(pattern)):
        assert time.time() < end, f"no {pattern} within {seconds} s"
        time.sleep(0.1)
