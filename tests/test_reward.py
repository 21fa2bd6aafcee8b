"""verl's reward function: its parts, its log of rollouts, and that verl itself can load and call it."""

import json
import threading
from pathlib import Path

import pytest

from reward_fns.accuracy_format import compute_score, well_formed

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
    assert well_formed(response) is good


def test_score_is_the_weighted_sum_of_its_parts() -> None:
    assert compute_score("d", GOOD, "7") == {"score": 1.0, "acc": 1.0, "format": 1.0, "length": float(len(GOOD))}
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
