"""A user's own reward function: what is taken, what is refused and when, and that a run ends on it with the question's id."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_cli import refused
from test_end_to_end import entries, run
from test_reward import GOOD
from test_sample import fake_vllm  # noqa: F401
from test_strategies import plan

from reward_fns import accuracy_format, own, rollouts
from synergy.data.records import Record
from synergy.driver import identity
from synergy.errors import StageFailed, UserError
from synergy.stages import Job, own_reward, rl, sample
from synergy.workers import sample as worker

HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):\n    "

ODD = '''"""Right answers of an odd length, to differ from the project's own; nonsense for the question that is named."""
from reward_fns.answer import judge

def compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs):
    if extra_info["id"] == kwargs.get("nonsense"):
        return {"score": float("nan")}
    right = judge(solution_str, ground_truth, extra_info["choices"]).correct
    return float(right and len(solution_str) % 2)
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No function of another test is loaded, and a failure is not waited for."""
    monkeypatch.delitem(sys.modules, own.MODULE, raising=False)
    monkeypatch.setattr(rollouts, "PATIENCE", 0.0)


def write(folder: Path, text: str) -> own.Own:
    (folder / "mine.py").write_text(text)
    return own.Own(str(folder / "mine.py"), "compute_score")


def score(found: own.Own, response: str = GOOD, **info: Any) -> dict[str, float]:
    return own.call(found, "d", response, "7", {"id": "q3", **info}, {})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1", (1.0, 1.0, 0.0)),
        ("True", (1.0, 1.0, 0.0)),
        ("-2.5", (-2.5, 0.0, 0.0)),
        ("0.5", (0.5, 0.0, 0.0)),
        ("__import__('numpy').float32(0.75)", (0.75, 1.0, 0.0)),
        ("{'score': 9}", (9.0, 1.0, 0.0)),
        ("{'score': 0.2, 'acc': 1, 'format': 0.5, 'note': 'ignored'}", (0.2, 1.0, 0.5)),
    ],
)
def test_numbers_and_dicts_are_taken(tmp_path: Path, value: str, wanted: tuple[float, float, float]) -> None:
    assert score(write(tmp_path, f"{HEAD}return {value}\n")) == dict(
        zip(("score", "acc", "format"), wanted, strict=True)
    )


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return None", "returned None"),
        ("return '1.0'", "returned '1.0'"),
        ("return float('nan')", "returned nan"),
        ("return [1.0, 2.0]", "returned [1.0, 2.0]"),
        ("return {'acc': 1.0}", "returned {'acc': 1.0}"),
        ("return {'score': float('-inf')}", "returned {'score': -inf}"),
        ("return {'score': 1, 'acc': 3}", "returned acc=3"),
        ("return {'score': 1, 'format': None}", "returned format=None"),
        ("return 1 / 0", "raised ZeroDivisionError: division by zero (line 2)"),
        ("raise ValueError('two\\nlines')", "raised ValueError: two lines (line 2)"),
        ("raise SystemExit(0)", "raised SystemExit"),
    ],
)
def test_nonsense_is_an_error_with_the_questions_id(tmp_path: Path, body: str, told: str) -> None:
    found = write(tmp_path, f"{HEAD}{body}\n")
    with pytest.raises(own.RewardError, match="q3") as error:
        score(found)
    assert told in str(error.value) and str(error.value).startswith(f"{found.path}: compute_score")
    assert "\n" not in str(error.value)


def test_it_is_given_the_whole_response_the_choices_and_its_keywords(tmp_path: Path) -> None:
    body = "raise ValueError((solution_str, ground_truth, extra_info['choices'], extra_info['prefix'], kwargs))\n"
    found = write(tmp_path, HEAD + body)
    chosen = json.dumps({"path": found.path, "name": found.name, "kwargs": {"bonus": 2}})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(own.RewardError) as error:
        patch.setenv("SYNERGY_REWARD", chosen)
        own.compute_score("d", "and an end", "7", {"prefix": "A beginning ", "choices": '{"A": "7"}'}, turns=1)
    seen = ("A beginning and an end", "7", {"A": "7"}, "A beginning ", {"turns": 1, "bonus": 2})
    assert str(seen) in str(error.value)


def test_rollouts_are_recorded_as_those_of_the_projects_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(tmp_path, HEAD + "return {'score': 3, 'acc': len(solution_str) > 9}\n")
    monkeypatch.setenv("SYNERGY_ROLLOUTS", str(tmp_path))
    info = {"id": "q3", "split": "train", "prefix": "12345", "global_steps": 2}
    accuracy_format.compute_score("d", "67890", "7", info)
    monkeypatch.setenv("SYNERGY_REWARD", json.dumps({"path": found.path, "name": found.name}))
    result = own.compute_score("d", "67890", "7", info)
    own.compute_score("d", "67890", "7", {**info, "split": "val"})
    theirs, ours = rl.rollouts(tmp_path)
    assert set(theirs) == set(ours)
    assert result == {"score": 3.0, "acc": 1.0, "format": 0.0, "length": 5.0, "broken": 0.0}
    assert (ours["id"], ours["step"], ours["characters"], ours["prefix"], ours["rule"]) == ("q3", 2, 5, 5, "own")
    assert rl.pass_counts(tmp_path) == [{"id": "q3", "n": 2, "passes": 1}]


def job(tmp_path: Path, name: str, *overrides: str) -> Job:
    stage = plan("interleaved", *overrides)[name]
    made = Job(stage, "k" * 64, tmp_path / "stage", tmp_path / "stage/attempt-1", {}, {"verl": sys.executable})
    made.attempt.mkdir(parents=True)
    made.work.mkdir()
    return made


@pytest.mark.parametrize(("name", "kind"), [("rl-1", rl), ("passes", sample)])
def test_a_failure_ends_the_stage_and_a_new_attempt_forgets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Any
) -> None:
    found = write(tmp_path, HEAD + "return None\n")
    made = job(tmp_path, name, f"reward.path={found.path}")
    for key, value in own_reward.env(made).items():
        monkeypatch.setenv(key, value)
    for asked in ("q3", "q4"):
        with pytest.raises(own.RewardError):
            own.compute_score("d", GOOD, "7", {"id": asked, "split": "train"})
    with pytest.raises(
        StageFailed, match=rf"stage {name} (?s:.)*mine.py: compute_score returned None for question 'q4'"
    ):
        kind.progress(made)
    own_reward.env(made)
    own_reward.raise_failure(made)
    assert own_reward.FAILED == rollouts.FAILED and not list((made.work / "rollouts").iterdir())


def test_the_identity_holds_the_functions_content_and_not_its_place(tmp_path: Path) -> None:
    def parts(name: str, *overrides: str) -> dict[str, Any]:
        return identity.identity(plan("interleaved", *overrides)[name], {}, {})

    (tmp_path / "elsewhere").mkdir()
    found, moved = write(tmp_path, ODD), write(tmp_path / "elsewhere", ODD)
    for name in ("rl-1", "passes"):
        usual, mine = parts(name), parts(name, f"reward.path={found.path}")
        assert {**usual, "own_reward": mine.get("own_reward")} == mine and "own_reward" not in usual
        assert parts(name, f"reward.path={moved.path}") == mine
        assert parts(name, f"reward.path={found.path}", "reward.name=other") != mine
        more = "+rl.verl_add.reward.custom_reward_function.reward_kwargs.bonus=2"
        assert parts(name, f"reward.path={found.path}", more) != mine
    assert parts("eval-base", f"reward.path={found.path}") == parts("eval-base"), "benchmarks are judged by the checker"
    write(tmp_path, ODD + "\n")
    assert parts("rl-1", f"reward.path={found.path}") != parts("rl-1", f"reward.path={moved.path}")
    with pytest.raises(UserError, match="No such file or directory; give a Python file"):
        parts("rl-1", "reward.path=/nowhere/mine.py")


def settings(tmp_path: Path, text: str, **kwargs: Any) -> dict[str, Any]:
    found = write(tmp_path, text)
    return {"reward": {"path": found.path, "name": found.name, "kwargs": kwargs}, "env": {"OF_THE_STAGE": "1"}}


def test_a_good_function_passes_and_runs_in_no_process_of_ours(tmp_path: Path) -> None:
    text = f"import os\nassert os.getpid() != {os.getpid()} and os.environ['OF_THE_STAGE']\nprint('loaded')\n" + ODD
    own_reward.check(settings(tmp_path, text, nonsense="q3"), sys.executable)
    assert own.MODULE not in sys.modules
    own_reward.check({"env": {}}, "/no/python/is/asked/for/the/projects/own")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def compute_score(\n", "can't be loaded: SyntaxError"),
        ("import no_such_module\n", "can't be loaded: ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
        ("raise SystemExit(0)\n", "can't be loaded: SystemExit"),
        ("def score(): ...\n", "has no function compute_score; it has: score"),
        ("def compute_score(data_source, solution_str):\n    return 1\n", "unexpected keyword argument 'ground_truth'"),
        ("def compute_score(a, *, b, **kwargs):\n    return 1\n", "missing a required argument: 'a'"),
        ("async " + HEAD + "return 1\n", "is async"),
        (HEAD + "return 1 if solution_str else None\n", "returned None for question 'probe'"),
        (HEAD + "return int(solution_str[-2])\n", "raised IndexError: string index out of range (line 2)"),
        (f"import os\n{HEAD}os._exit(3)\n", "ended with code 3"),
        (f"import os\n{HEAD}os._exit(0)\n", "ended with code 0"),
    ],
)
def test_what_can_be_known_is_told_before_the_run(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        own_reward.check(settings(tmp_path, text), sys.executable)
    assert told in str(error.value) and "reward.path=null" in str(error.value) and "\n" not in str(error.value)


def test_a_function_without_room_for_the_keywords_is_told(tmp_path: Path) -> None:
    text = "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 1\n"
    own_reward.check(settings(tmp_path, text), sys.executable)
    with pytest.raises(UserError, match=r"'bonus'; its arguments should be .*\*\*kwargs"):
        own_reward.check(settings(tmp_path, text, bonus=1), sys.executable)


def test_a_function_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_reward, "SECONDS", 8.0)
    pid = tmp_path / "pid"
    text = "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
    text += f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
    with pytest.raises(UserError, match="took longer than 8 s"):
        own_reward.check(settings(tmp_path, f"{text}{HEAD}time.sleep(60)\n"), sys.executable)
    left = int(pid.read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_verls_own_way_in_is_named_as_ours(tmp_path: Path) -> None:
    stage = plan("rl", "+rl.verl.reward.custom_reward_function.path=/x/mine.py")["rl"]
    with pytest.raises(UserError, match=r"by reward\.path"):
        rl.check(stage, {"verl": sys.executable})


def test_verl_is_given_the_wrapper_and_the_functions_own_keywords(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    found = write(tmp_path, ODD)
    more = "+rl.verl_add.reward.custom_reward_function.reward_kwargs.nonsense=q3"
    rl.check(plan("rl", f"reward.path={found.path}", more)["rl"], {"verl": sys.executable})
    with pytest.raises(UserError, match=r"unknown \['nonsense'\]"):
        rl.check(plan("rl", more)["rl"], {"verl": sys.executable})


def test_sampling_asks_the_same_function(
    tmp_path: Path,
    fake_vllm: list[str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = write(tmp_path, HEAD + "return kwargs['by_id'][extra_info['id']]\n")
    chosen = {"path": found.path, "name": found.name, "kwargs": {"by_id": {"a": 0.75, "b": 0.25, "c": "high"}}}
    monkeypatch.setenv("SYNERGY_REWARD", json.dumps(chosen))
    output = SimpleNamespace(text="\\boxed{3}", token_ids=[1, 2], finish_reason="stop")
    rows = [worker.row(Record(name, "How many?", "3"), 0, output) for name in "ab"]
    assert [(row["acc"], row["format"]) for row in rows] == [(1.0, 0.0), (0.0, 0.0)]
    with pytest.raises(own.RewardError, match="'high' for question 'c'"):
        worker.row(Record("c", "How many?", "3"), 0, output)


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "No such file or directory; give a Python file"), ("x = 1\n", "has no function compute_score")],
)
def test_bad_functions_are_one_message_and_exit_code_2(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        write(tmp_path, text)
    refused(tmp_path / "runs", told, "recipe=rl", f"reward.path={tmp_path / 'mine.py'}")


TINY = ["recipe=rl", "budget.rl_steps=2", "evaluate.runs=1", "data.sizes={train: 64, val: 4, bench: 5}"]
KEYWORDS = "rl.verl_add.reward.custom_reward_function.reward_kwargs"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_run_counts_what_the_function_says_and_ends_where_it_fails(tmp_path: Path) -> None:
    """verl itself would take the exception for a failed rollout, and train on."""
    found = write(tmp_path, ODD)
    words, dump = [*TINY, f"reward.path={found.path}"], tmp_path / "dump"
    run(tmp_path / "runs", *words, f"+rl.verl.trainer.rollout_data_dir={dump}")
    made = entries(tmp_path / "runs")["rl"]
    rows = [json.loads(line) for file in dump.glob("*.jsonl") for line in file.read_text().splitlines()]
    counts = [json.loads(line) for line in (tmp_path / "runs" / made.output / "passes.jsonl").read_text().splitlines()]
    assert sum(row["n"] for row in counts) == len(rows) == 2 * 8 * 4
    assert sum(row["passes"] for row in counts) == sum(row["score"] for row in rows) > 0
    assert all(len(row["output"]) % 2 for row in rows if row["score"]), "as only this function says"

    question = counts[0]["id"]
    done = run(tmp_path / "runs", *words, f"+{KEYWORDS}.nonsense={question}", code=1)
    assert f"compute_score returned {{'score': nan}} for question '{question}'" in done.stderr
    assert "Traceback" not in done.stderr and "stage rl (rl) was ended by its reward function" in done.stderr
    failed = sorted((tmp_path / "runs/stages").glob("rl-*"), key=lambda p: p.stat().st_mtime)
    assert [len(list(folder.glob("output"))) for folder in failed].count(0) == 1, "nothing was published"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_sampling_ends_where_the_function_fails(tmp_path: Path) -> None:
    found = write(tmp_path, ODD)
    words = ["recipe=tag", "data.sizes={train: 8, val: 1, bench: 1}", "sample.replicas=2", f"reward.path={found.path}"]
    done = run(tmp_path / "runs", *words, f"+{KEYWORDS}.nonsense=train-0-00003", code=1)
    assert (
        "returned {'score': nan} for question 'train-0-00003'" in done.stderr and "stage runs (sample)" in done.stderr
    )
    assert "Traceback" not in done.stderr and "runs" not in entries(tmp_path / "runs")
