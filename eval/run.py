"""python eval/run.py SPEC.json: evaluate a served model with VLMEvalKit.

SPEC.json: {"model_name", "endpoint": "http://host:port/v1" or a list of such, "benchmarks": [{"name", "tsv", "kind"}], "runs",
"sampling": {"temperature", "top_p", "top_k", "max_tokens", "seed", ...}, "instruction": text or null, "workers",
"work_dir", "out"} and, optional, "wait_seconds" (for the endpoint, 30), "request_timeout" (900 s), "retries" (3), "judge"
({"endpoint", "model", "key_env", "workers", "timeout", "retries"}: a model that judges where rules find no answer).
"gate": a file that is there once the endpoints may be asked, waited for as long as they are.
`model_name` is the name the endpoint serves the model by, and must change with the weights: put a digest into it.
SYNERGY_API_KEYS in the environment: keys of the endpoints, with spaces between. `workers` requests are in flight over all.

OUT/results.jsonl has a row for each benchmark, run and question; OUT/progress.json is rewritten while it runs. Started
again with the same `work_dir`, it asks no answered question again. Exit code 0: every question was answered and judged;
1: a request or VLMEvalKit failed; 2: the spec or a table is wrong. The last line on stderr is the reason.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def collect(state: Any) -> list[dict[str, Any]]:
    """Verdicts joined with length and finish reason, in the order of the spec. Raises AskError if any is missing."""
    from eval import kit
    from eval.datasets import VERDICTS
    from eval.session import AskError

    spec = state.spec
    answers = {(row["benchmark"], row["run"], row["index"]): row for row in state.rows()}
    rows: list[dict[str, Any]] = []
    for bench in spec.benchmarks:
        for run in range(spec.runs):
            path = kit.find(spec, run, bench.name, VERDICTS)
            if path is None:
                raise AskError(
                    f"VLMEvalKit left no scores of {bench.name}, run {run}; its log is in {kit.kit_dir(spec)}"
                )
            for line in path.read_text(encoding="utf-8").split("\n"):
                if not line:
                    continue
                verdict = json.loads(line)
                answer = answers[bench.name, run, verdict["index"]]
                kept = {key: answer[key] for key in ("tokens", "finish_reason", "response")}
                rows.append({"benchmark": bench.name, "run": run, **verdict, **kept})
    if len(rows) != state.total:
        raise AskError(f"{len(rows)} of {state.total} answers were scored; VLMEvalKit's log is in {kit.kit_dir(spec)}")
    return rows


def _await(gate: Path, seconds: float) -> None:
    from eval.session import AskError

    end = time.monotonic() + seconds
    while not gate.exists():
        if time.monotonic() > end:
            raise AskError(
                f"{gate} is not there after {seconds:.0f} s: whoever serves the model did not say that it is right"
            )
        time.sleep(0.05)


def evaluate(spec_path: Path) -> None:
    """The whole evaluation. Raises SpecError or AskError."""
    from eval import judge, kit, session
    from eval.endpoint import wait_for
    from eval.spec import load_spec, read_questions

    spec = load_spec(spec_path)
    state = session.Session(spec, {bench.name: read_questions(bench) for bench in spec.benchmarks})
    session.start(state)
    (spec.out / "results.jsonl").unlink(missing_ok=True)
    kit.prepare(spec)
    try:
        main = kit.load()
        state.enter("wait")
        if spec.judge is not None:
            judge.await_judge(spec.judge, min(spec.wait_seconds, 30))
        for endpoint in spec.endpoints:
            wait_for(endpoint, spec.model_name, spec.wait_seconds)
        if spec.gate is not None:
            _await(spec.gate, spec.wait_seconds)
        state.enter("ask")
        kit.ask(spec)
        state.enter("score")
        kit.run(spec, main)
        state.check()
        rows = collect(state)
        if spec.judge is not None:
            state.enter("judge")
        rows = judge.settle(state, rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        session.write_atomic(spec.out / "results.jsonl", text, sync=True)
    except BaseException:
        state.enter("failed")
        raise
    state.enter("done")
    print(f"evaluated {spec.model_name}: {state.total} answers in {spec.out / 'results.jsonl'}", flush=True)


def main(arguments: list[str]) -> int:
    """Exit code."""
    from eval.session import AskError
    from eval.spec import SpecError

    if len(arguments) != 1:
        print("usage: python eval/run.py SPEC.json", file=sys.stderr)
        return 2
    try:
        evaluate(Path(arguments[0]))
    except SpecError as err:
        print(f"bad input: {err}", file=sys.stderr)
        return 2
    except AskError as err:
        print(f"evaluation failed: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # instead of eval/, whose module names would shadow others
    sys.exit(main(sys.argv[1:]))
