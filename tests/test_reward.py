"""verl's reward function: its parts, its log of rollouts, and that verl itself can load and call it."""

import json
import threading
from pathlib import Path

import pytest
from conftest import make_checkpoint
from test_strategies import plan

from reward_fns import gold, length
from reward_fns.accuracy_format import compute_score, settings_problem, think_then_box
from synergy import lab, machine
from synergy.stages import Job, fit, rl

ROOT = Path(__file__).resolve().parents[1]
GOOD = "<think>3 and 4 make 7.</think>\n\\boxed{7}"


@pytest.mark.parametrize(
    ("response", "good"),
    [
        (GOOD, True),
        ("  " + GOOD, True),
        ("<think></think>\nThe sum is \\boxed{7}.", True),
        ("x" + GOOD, False),
        (GOOD + " \\boxed{7}", False),
        ("<think>a</think><think>b</think>\\boxed{7}", False),
        ("<think>a\\boxed{7}", False),
        ("<think>a</think> 7", False),
        ("<think>a</think> \\boxed{", False),
        ("<think>a</think> \\boxed{ }", False),
        ("\\boxed{7}", False),
        ("<think>an early \\boxed{7}</think> then \\boxed{7}", True),
    ],
)
def test_format(response: str, good: bool) -> None:
    assert think_then_box(response) is good


def test_score_is_the_weighted_sum_of_its_parts() -> None:
    parts = {"score": 1.0, "acc": 1.0, "format": 1.0, "length": float(len(GOOD)), "broken": 0.0}
    assert compute_score("d", GOOD, "7") == parts
    assert compute_score("d", "\\boxed{7}", "7")["score"] == pytest.approx(0.9)
    assert compute_score("d", GOOD, "8")["score"] == pytest.approx(0.1)
    assert compute_score("d", GOOD, "7", accuracy_weight=0.5, format_weight=0.25, unknown=1)["score"] == 0.75


@pytest.mark.parametrize("choices", [{"A": "6", "B": "7", "C": None}, '{"A": "6", "B": "7"}'])
def test_choices_as_mapping_or_json(choices: object) -> None:
    assert compute_score("d", GOOD, "B", {"choices": choices})["acc"] == 1.0
    assert compute_score("d", "\\boxed{B}", "B", {"choices": choices})["acc"] == 1.0
    assert compute_score("d", "\\boxed{A}", "B", {"choices": choices})["acc"] == 0.0
    assert compute_score("d", GOOD, "7", {"choices": ""})["acc"] == 1.0


def test_a_prefix_is_judged_with_the_continuation_but_not_counted() -> None:
    half = len(GOOD) // 2
    result = compute_score("d", GOOD[half:], "7", {"prefix": GOOD[:half]})
    assert result["score"] == 1.0 and result["length"] == len(GOOD) - half
    assert compute_score("d", GOOD[half:], "7", {"prefix": ""})["format"] == 0.0


def test_the_format_check_is_a_setting() -> None:
    assert compute_score("d", "So \\boxed{7}", "7", format_check="one_box")["format"] == 1.0
    assert compute_score("d", "So \\boxed{7}", "7")["format"] == 0.0


def test_length_in_tokens_of_the_model() -> None:
    tokenizer = str(lab.BASE / "tokenizer.json")
    counted = compute_score("d", GOOD, "7", tokenizer=tokenizer)["length"]
    assert counted == length.count(GOOD, tokenizer) < len(GOOD)


def test_overlong_penalty_as_in_dapo() -> None:
    assert [length.overlong_penalty(n, 100, 20) for n in (0, 80, 90, 100, 500)] == [0, 0, -0.5, -1, -1]
    words = {"overlong": {"max": len(GOOD), "buffer": 10, "factor": 0.5}}
    assert compute_score("d", GOOD, "7", **words)["score"] == pytest.approx(0.5)


def test_cosine_length_reward() -> None:
    def reward(correct: bool, tokens: int) -> float:
        return length.cosine_reward(correct, tokens, 100, (1.0, 0.5), (-1.0, 0.0), -2.0)

    assert reward(True, 0) == 1.0 and reward(True, 50) == pytest.approx(0.75) and reward(False, 0) == -1.0
    assert reward(True, 99) == pytest.approx(0.5, abs=0.01) and reward(True, 100) == reward(False, 100) == -2.0
    assert reward(False, 10) < reward(False, 90), "a wrong answer may think longer"
    cosine = {"max": 10_000, "correct": [1.0, 0.5], "wrong": [-1.0, 0.0], "exceeded": -2.0}
    result = compute_score("d", GOOD, "7", cosine=cosine)
    assert result["score"] == pytest.approx(1.0, abs=0.01) and result["acc"] == 1.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"accuracy": 1}, "unknown ['accuracy']"),
        ({"format_check": "xml"}, "one of think_then_box, one_box"),
        ({"format_weight": "much"}, "no number"),
        ({"overlong": {"max": 10, "buffer": 20}}, "overlong.buffer=20"),
        ({"overlong": {"max": 10}}, "overlong takes"),
        ({"cosine": {"max": 10, "correct": [1], "wrong": [0, 0], "exceeded": 0}}, "two rewards each"),
    ],
)
def test_wrong_settings_are_told_before_the_run(given: dict[str, object], told: str) -> None:
    assert told in str(settings_problem(given))
    assert settings_problem({"accuracy_weight": 0.9, "overlong": None, "cosine": None}) is None


@pytest.mark.parametrize("ground_truth", [None, "", 7, ["7"]])
def test_a_broken_row_scores_nothing_and_is_counted(
    ground_truth: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNERGY_ROLLOUTS", str(tmp_path))
    result = compute_score("d", GOOD, ground_truth, {"id": "bad", "split": "train"})  # type: ignore[arg-type]
    assert (result["score"], result["acc"], result["broken"]) == (0.0, 0.0, 1.0)
    compute_score("d", GOOD, "7", {"id": "good", "split": "train"})
    assert rl.pass_counts(tmp_path) == [{"id": "good", "n": 1, "passes": 1}]
    assert [(row["id"], row["broken"]) for row in rl.rollouts(tmp_path)] == [("bad", 1.0), ("good", 0.0)]


@pytest.mark.parametrize(
    ("answer", "choices", "kind", "told"),
    [
        (None, None, None, "has no answer"),
        ("  ", None, None, "is empty"),
        (["1", "2"], None, None, "several answers (2)"),
        (7, None, None, "is int, not text"),
        ("7", None, "numeral", "unknown; one of choice, number"),
        ("7 and x", None, "number", "is no number"),
        ("E", {"A": "1", "B": "2"}, "choice", "none of its choices"),
        ("B", None, "choice", "has no choices"),
        ("perhaps", None, "yes/no", "neither yes nor no"),
        ("7}", None, None, "braces"),
        ("x" * 2000, None, None, "2000 characters"),
        ("\\frac{1}{2}", None, "number", None),
        ("12 cm", None, None, None),
        ("B", {"A": "1", "B": "2"}, "choice", None),
        ("2", {"A": "1", "B": "2"}, "choice", None),
    ],
)
def test_gold_answers_are_checked_before_training(
    answer: object, choices: object, kind: str | None, told: str | None
) -> None:
    found = gold.problem(answer, choices, kind)  # type: ignore[arg-type]
    assert (told in found) if told else found is None, found  # type: ignore[operator]


def test_logs_training_rollouts_only_and_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNERGY_ROLLOUTS", str(tmp_path))
    compute_score("d", GOOD, "7", {"id": "v", "split": "val"})
    assert not list(tmp_path.iterdir())

    def score(name: str) -> None:
        for index in range(50):
            compute_score("d", GOOD, "7", {"id": f"{name}-{index}", "split": "train", "global_steps": 3})

    threads = [threading.Thread(target=score, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["id"] for row in rows} == {f"{name}-{index}" for name in "abcd" for index in range(50)}
    assert all(row["acc"] == row["format"] == 1.0 and row["step"] == 3 and row["answer"] == "7" for row in rows)


def test_verl_loads_it_by_path() -> None:
    pytest.importorskip("verl")
    from verl.utils.import_utils import load_extern_object

    loaded = load_extern_object(str(ROOT / "reward_fns" / "accuracy_format.py"), "compute_score")
    assert loaded(data_source="d", solution_str=GOOD, ground_truth="7", extra_info={})["score"] == 1.0


def test_broken_rollouts_are_kept_and_reported(tmp_path: Path) -> None:
    base, data = make_checkpoint(tmp_path / "base"), tmp_path / "data"
    data.mkdir()
    (data / "order.json").write_text(json.dumps([f"q{i}" for i in range(16)]))
    inputs = {"base": base, "model": base, "data": data}
    job = Job(plan("rl")["rl"], "k" * 64, tmp_path / "stage", tmp_path / "stage/attempt-1", inputs, {})
    (job.work / "rollouts").mkdir(parents=True)
    job.attempt.mkdir()
    make_checkpoint(job.work / "checkpoints/global_step_1/actor/huggingface", shift=1)
    rows = [{"id": "a", "acc": 1.0, "broken": 0.0}, {"id": "b", "acc": 0.0, "broken": 1.0, "rule": "broken: no gold"}]
    (job.work / "rollouts/1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    figures = rl.collect(job, tmp_path / "out")
    assert figures["warning"].startswith("1 rollouts of 1 questions could not be judged")
    assert json.loads((tmp_path / "out/broken.jsonl").read_text())["rule"] == "broken: no gold"
    assert [json.loads(line)["id"] for line in (tmp_path / "out/passes.jsonl").read_text().splitlines()] == ["a"]


def test_the_gpu_memory_that_rl_took_is_a_figure_on_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl tells GiB, and on a CPU the process's own memory."""
    (tmp_path / "attempt-1").mkdir()
    made = Job(plan("rl")["rl"], "k" * 64, tmp_path, tmp_path / "attempt-1", {}, {})
    key = "actor/perf/max_memory_allocated_gb"
    rows = [json.dumps({"step": n, "data": {key: gib}}) for n, gib in enumerate((60.0, 63.4), start=1)]
    (tmp_path / "attempt-1/verl_metrics.jsonl").write_text("\n".join(rows) + "\n")
    metrics = [figures for _, figures in rl._metrics(made)]
    assert fit.taken(made.stage, (row["memory_gib"] for row in metrics)) == {}
    monkeypatch.setattr(machine, "gpu_memory", lambda: 141 * 10**9)
    assert fit.taken(made.stage, (row["memory_gib"] for row in metrics)) == {"gpu_memory_gb": 68.08}


def test_progress_after_a_kill_is_that_of_the_new_attempt(tmp_path: Path) -> None:
    """Killed at step 9 and gone on from a save at 4: the steps between are still to be repeated."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "order.json").write_text(json.dumps([f"q{i}" for i in range(12 * 16)]))
    made = Job(plan("rl")["rl"], "k" * 64, tmp_path, tmp_path / "attempt-2", {"data": data}, {})

    def took(attempt: int, *steps: int) -> None:
        (tmp_path / f"attempt-{attempt}").mkdir(exist_ok=True)
        data = {"critic/score/mean": attempt, "response_length/mean": 9}
        rows = [json.dumps({"step": step, "data": data}) for step in steps]
        (tmp_path / f"attempt-{attempt}/verl_metrics.jsonl").write_text("\n".join(rows) + "\n")

    took(1, *range(1, 10))
    took(2, 5, 6)
    found = rl.progress(made)
    assert found is not None and (found.done, found.total, found.figure) == (6, 12, "reward 2.000, length 9")
    took(2, *range(5, 13))
    assert [figures["reward"] for _, figures in rl._metrics(made)] == [1] * 4 + [2] * 8
