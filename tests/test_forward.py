"""A loader that reads another model than the tensors are is caught before a stage begins, in transformers and in vLLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_conformance import planned

from synergy import environments, lab, paths
from synergy.driver import forward, handoff, identity
from synergy.driver.plan import Workspace
from synergy.driver.process import Outcome
from synergy.errors import Passing, StageFailed, UserError
from synergy.stages import Command, Job
from synergy.workers import logprobs
from synergy.workers.evaluate import dtype, verify
from synergy.workers.vllm_server import Server, ServerConfig, ServerError

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny base model, with the check that transformers reads it as it is."""
    file = tmp_path_factory.mktemp("record") / "record.json"
    logprobs.make(lab.BASE, file, check=True)
    return file


def harmed(folder: Path, harm: Callable[[Tensors], Tensors]) -> Path:
    shutil.copytree(lab.BASE, folder)
    file = folder / "model.safetensors"
    save_file(harm(load_file(file)), file, {"format": "pt"})
    return folder


def renamed(old: str) -> Callable[[Tensors], Tensors]:
    """Names that no loader knows, as another version may write them: each is filled with random numbers."""
    return lambda tensors: {name.replace(old, "other.", 1): value for name, value in tensors.items()}


def swapped(tensors: Tensors) -> Tensors:
    """Two layers take each other's place."""
    at = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    other = {name: next((name.replace(a, b) for a, b in at.items() if a in name), name) for name in tensors}
    return {name: tensors[other[name]] for name in tensors}


def zeroed(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if name.startswith("model.layers.1.") and name.endswith("o_proj.weight"))
    return {**tensors, name: np.zeros_like(tensors[name])}


def test_an_untouched_model_is_read_as_it_is(record: Path) -> None:
    found = logprobs.read(record)
    assert found is not None
    ((who, off),) = found.loads.items()
    assert who == f"transformers {environments.versions(sys.executable)['transformers']}" and off < 1e-5
    assert sum(value is None for value in found.logprobs) == 12, "image tokens"
    assert sum(value is not None for value in found.logprobs) > 60


@pytest.mark.parametrize(
    "harm",
    [renamed("model.layers.1."), renamed("visual.blocks.0."), swapped, zeroed],
    ids=["text", "vision", "swap", "zero"],
)
def test_another_model_is_caught_in_transformers(
    tmp_path: Path, record: Path, harm: Callable[[Tensors], Tensors]
) -> None:
    bad = harmed(tmp_path / "bad", harm)
    shutil.copy2(record, tmp_path / "record.json")
    with pytest.raises(UserError) as error:
        logprobs.make(bad, tmp_path / "record.json", check=True)
    told = str(error.value)
    assert f"{bad}: what transformers" in told and "is not the model of its tensors: mean log-probability -" in told
    assert "where the tensors give -" in told and "0.001 in float32 allowed" in told and "run.verify=false" in told
    assert "\n" not in told


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_no_other_model_and_swapped_layers_are(tmp_path: Path, record: Path, dtype: str) -> None:
    """Measured by benchmarks/forward_tolerance.py. Both sides keep a margin of 2."""
    import torch
    from transformers import AutoModelForImageTextToText

    told = logprobs.read(record)
    assert told is not None
    off = {}
    for name, model in (("good", lab.BASE), ("bad", harmed(tmp_path / "bad", swapped))):
        load = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype))
        _, ids, found = logprobs.forward(load, model, told.asked, told.image)
        off[name] = float(np.mean([abs(a - b) for a, b in zip(told.logprobs, found, strict=True) if a is not None]))
        if name == "good":
            assert logprobs.compare(told, ids, found, dtype, "it") == pytest.approx(off["good"])
        else:
            with pytest.raises(UserError, match="is not the model of its tensors"):
                logprobs.compare(told, ids, found, dtype, "it")
    assert off["good"] * 2 < logprobs.TOLERANCE[dtype] < off["bad"] / 2, off


def test_tensors_without_a_place_have_no_record(tmp_path: Path) -> None:
    bad = harmed(tmp_path / "bad", renamed("visual.blocks.0."))
    with pytest.raises(UserError, match=r"bad: \d+ tensors, the first \S+, are not those of Qwen2_5_VL"):
        logprobs.make(bad, tmp_path / "record.json", check=False)
    assert not (tmp_path / "record.json").exists()


def test_other_tokens_are_told() -> None:
    told = logprobs.Record("q", "q", "", [1, 2, 3], [-1.0, -2.0])
    with pytest.raises(UserError, match="vLLM reads other tokens"):
        logprobs.compare(told, [1, 2, 4], [-1.0, -2.0], "float32", "vLLM")
    with pytest.raises(UserError, match="no log-probability for some"):
        logprobs.compare(told, [1, 2, 3], [-1.0, None], "float32", "vLLM")
    with pytest.raises(UserError, match="is not the model"):
        logprobs.compare(told, [1, 2, 3], [-1.0, float("nan")], "float32", "vLLM")
    assert logprobs.compare(told, [1, 2, 3], [-1.0, -2.0002], "float32", "vLLM") == pytest.approx(1e-4)


# The driver's side --------------------------------------------------------------------------------------------------


def job(folder: Path, kind: str, model: Path) -> Job:
    pythons = dict.fromkeys(environments.FRAMEWORKS, sys.executable)
    made = Job(planned(kind), "k" * 64, folder, folder / "attempt-1", {"model": model}, pythons)
    made.attempt.mkdir(parents=True)
    return made


def ended(code: int, stopped: str | None = None) -> Outcome:
    return Outcome(code, stopped, 0.0, 0)


def real(command: Command, log: Path) -> Outcome:
    with log.open("ab") as sink:
        env = {**os.environ, **command.env}
        done = subprocess.run(command.argv, env=env, cwd=command.cwd, stdout=sink, stderr=subprocess.STDOUT)
    return ended(done.returncode)


def test_a_model_is_looked_at_once_and_again_by_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Command] = []

    def run(command: Command, log: Path) -> Outcome:
        ran.append(command)
        return real(command, log)

    space, digest = Workspace(tmp_path), identity.digest(lab.BASE)
    for number, kind in enumerate(("sft", "rl", "sample", "evaluate")):
        made = forward.model(job(tmp_path / f"{number}", kind, lab.BASE), space, digest, run)
        assert made.record is not None and made.record.is_relative_to(tmp_path / "handoffs")
    assert len(ran) == 1, "one look serves all"
    monkeypatch.setattr(environments, "versions", lambda python: {"transformers": "9.9"})

    def note(command: Command, log: Path) -> Outcome:
        ran.append(command)
        return ended(0)

    forward.model(job(tmp_path / "newer", "rl", lab.BASE), space, digest, note)
    assert len(ran) == 2 and ran[1].argv[-1] == "check"


def test_a_stage_whose_loader_reads_another_model_does_not_begin(tmp_path: Path, record: Path) -> None:
    bad, space = harmed(tmp_path / "bad", zeroed), Workspace(tmp_path / "runs")
    file = space.root / "handoffs" / f"{'d' * 16}.json"
    file.parent.mkdir(parents=True)
    told = json.loads(record.read_text())
    file.write_text(json.dumps({**told, "loads": {}}))
    with pytest.raises(
        UserError, match=r"^stage sft\S*: \S+/bad: what transformers \S+ loads is not the model of its tensors"
    ):
        forward.model(job(tmp_path / "stage", "sft", bad), space, "d" * 64, real)


@pytest.mark.parametrize(
    ("done", "error", "told"),
    [
        (ended(1), StageFailed, "ended with exit code 1"),
        (
            ended(-15, "said nothing for 30 minutes and was stopped"),
            StageFailed,
            "said nothing for 30 minutes and was stopped",
        ),
        (ended(0), StageFailed, "told nothing"),
        (ended(1), Passing, "ended with exit code 1"),
    ],
)
def test_a_pass_that_breaks_is_told_with_its_log(
    tmp_path: Path, done: Outcome, error: type[StageFailed], told: str
) -> None:
    last = "NodeDiedError: gone" if error is Passing else "ImportError: no torch"

    def run(command: Command, log: Path) -> Outcome:
        log.write_text(last + "\n")
        return done

    with pytest.raises(
        StageFailed, match=rf"forward pass on its model .*{told} \(run\.verify=false(.|\n)*{last}"
    ) as found:
        forward.model(job(tmp_path / "stage", "sft", lab.BASE), Workspace(tmp_path), "d" * 64, run)
    assert type(found.value) is error


# vLLM ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [("--dtype=float32", "float32"), ("--dtype half", "float16"), ("--dtype bfloat16", "bfloat16"), ("", "bfloat16")],
)
def test_the_dtype_of_a_server_is_read_off_its_arguments(words: str, told: str) -> None:
    assert dtype(["--enforce-eager", *words.split()]) == told


def test_a_server_that_serves_another_model_is_told(tmp_path: Path, record: Path) -> None:
    told = logprobs.read(record)
    assert told is not None
    rows: list[Any] = [
        None,
        *({str(i): {"logprob": v or 0.0}} for i, v in zip(told.ids[1:], told.logprobs, strict=True)),
    ]
    reply: dict[str, Any] = {}
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if reply else 500)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        (tmp_path / "log").write_text("")
        alive = subprocess.Popen(["sleep", "60"])
        server = Server(alive, http.server_port, tmp_path / "log", "key")
        config = ServerConfig(lab.BASE, "name", tmp_path / "log", ["--dtype=float32"])
        with pytest.raises(ServerError, match=r"tells no log-probabilities.*run\.verify=false"):
            verify(server, config, told)
        reply.update(prompt_token_ids=told.ids, prompt_logprobs=rows)
        verify(server, config, told)
        assert asked[-1]["messages"][0]["content"][1]["text"] == told.asked
        verify(server, replace(config, args=["--dtype=bfloat16"]), told)
        rows[-5:] = [{name: {"logprob": -40.0} for name in row} for row in rows[-5:]]
        with pytest.raises(UserError, match=r"what vLLM's server loads is not the model of its tensors"):
            verify(server, config, told)
        alive.kill()
        alive.wait()
        http.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_model_is_caught_in_vllm(tmp_path: Path, record: Path) -> None:
    """The sample worker's own start: an untouched model is asked, one with two layers swapped is not."""
    sampled = planned("sample").settings
    line = {"id": "q0", "question": "How many?", "answer": "3", "images": []}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    for name, model in (("good", lab.BASE), ("bad", harmed(tmp_path / "swapped", swapped))):
        spec = {
            **{key: sampled[key] for key in ("n", "seed", "sampling", "instruction", "engine")},
            "model": str(model), "records": str(tmp_path / "train.jsonl"), "ids": ["q0"], "replicas": None,
            "responses": str(tmp_path / name), "record": str(record),
        }  # fmt: skip
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        env = {**os.environ, "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **sampled["env"]}
        done = subprocess.run(
            [sys.executable, "-m", "synergy.workers.sample", str(tmp_path / "spec.json")],
            env=env, capture_output=True, text=True,
        )  # fmt: skip
        if name == "good":
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            assert "vLLM loads the model as it is: log-probabilities " in done.stdout
        else:
            assert done.returncode == 2
            assert f"{model}: what vLLM loads is not the model of its tensors" in done.stdout.splitlines()[-1]
            assert not list((tmp_path / name).glob("*.jsonl")), "no question was asked"


def test_what_is_published_from_other_names_is_read_as_it_is(tmp_path: Path) -> None:
    """Names as transformers has them at run time are published under those that loaders know."""
    from synergy.stages.sft import runtime_name

    def moved(tensors: Tensors) -> Tensors:
        return {runtime_name(name): value + np.float32("q_proj.w" in name) * 0.01 for name, value in tensors.items()}

    handoff.publish(harmed(tmp_path / "made", moved), lab.BASE, lab.BASE, tmp_path / "out")
    logprobs.make(tmp_path / "out", tmp_path / "record.json", check=True)
