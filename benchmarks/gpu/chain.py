"""One round of recipe=interleaved at 3B on GPUs, random weights: evaluation, SFT, RL, evaluation, checkpoints handed on.

    python benchmarks/gpu/chain.py WORK RANKS [size=3b|7b|tiny] [gpus=1] [nodes=1] [recipe=interleaved] [plan] [override ...]
    ... address=http://HEAD:PORT                                   # as a job of that Ray cluster (nodes.py makes one)

Makes the model (random_model.py) and 96 questions with one image of 448 × 448 pixels in WORK, runs `synergy run` there, and
prints each stage's time and figures. Random weights answer nothing right, so reward_by_chance.py judges. Optimizer states, of
30 GB, are not saved, nor models before a stage's end: the same command reuses what was finished, and begins a stage that was
cut off anew; of size=tiny all is saved, and it goes on. CUDA graphs are left out: compiling them takes longer than this run.
verl looks for finished rollouts all the time (verl_fast_poll.py): its 2 s between two looks are 5 % of so short a step.
WORK/moments.json: when each stage's process began, had imported, and did its steps; by_hand.py compares them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from moments import FOLLOWED, STEPS, Watch, attempt

from synergy.driver import ledger
from synergy.lab import INSTRUCTION, digits

HERE = Path(__file__).resolve().parent
SIDE = 448
TRACE_LINES = 400
"""Each trace is its own lines of reasoning over and over, about 2,000 tokens."""
QUESTIONS = {"train": 96, "val": 8, "bench_open": 48}
SMALL = (
    "run.dir={work}/runs", "model.path={work}/model", "data.source={work}/data", "data.instruction='{instruction}'",
    "reward.path={here}/reward_by_chance.py", "budget.rl_epochs=1",
    "evaluate.benchmarks=[{{name: Digits, records: bench_open.jsonl, kind: open}}]", "evaluate.runs=1",
    "lengths.rl=512", "lengths.rl_after_sft=512", "evaluate.sampling.max_tokens=512",
    "+rl.verl.actor_rollout_ref.rollout.enforce_eager=true",
    "evaluate.server=['--dtype=bfloat16','--max-model-len=8192','--gpu-memory-utilization=0.9','--enforce-eager',"
    "'--limit-mm-per-prompt={{\"video\": 0}}']",
    "sft.batch=8", "sft.config.logging_steps=1",
    "rl.verl.data.train_batch_size=32",
    "rl.verl.actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "+rl.verl.trainer.v1.sampler.custom_sampler={{path: pkg://verl_fast_poll, name: FastPoll}}",
)  # fmt: skip
OFTEN = ("sft.config.save_strategy=steps", "+sft.config.save_steps=4", "rl.verl.trainer.save_freq=2")
ONLY_MODELS = (
    "sft.config.save_strategy=no",
    "rl.verl.actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]",
    "rl.verl.actor_rollout_ref.actor.checkpoint.load_contents=[model]",
)
WORDS = {"size": "3b", "gpus": "1", "nodes": "1", "recipe": "interleaved", "address": ""}
ALONE = ("sft.config.fsdp=null", "sft.config.fsdp_config=null")
"""One GPU of 80 GB holds the 3B's weights, gradients and optimizer."""
INTERLEAVED = ("recipe.rounds=1", "recipe.sft_on=all", "recipe.sample_first=false")


def make_data(out: Path) -> None:
    """The lab's questions and traces, their pictures enlarged to 448 × 448 and their traces made long."""
    (out / "images").mkdir(parents=True)
    for split, count in QUESTIONS.items():
        made = list(digits.questions(split, count))
        for record in made:
            digits.picture(record.cells).resize((SIDE, SIDE)).save(out / record.images[0])
        levels = [1 + i % 5 for i in range(count)]  # of no meaning here
        rows = [{**r.row(), "level": n, "trace": long(r.trace)} for r, n in zip(made, levels, strict=True)]
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def long(trace: str) -> str:
    begin, *lines, end, answer = trace.split("\n")
    return "\n".join([begin, *(lines[i % len(lines)] for i in range(TRACE_LINES)), end, answer])


def summary(entries: Iterable[ledger.Entry]) -> None:
    """A line per finished stage."""
    for entry in entries:
        facts = {k: v for k, v in entry.figures.items() if isinstance(v, (int, float, str))}
        print(f"{entry.name:10} {entry.kind:9} {entry.seconds:7.1f} s  {json.dumps(facts)[:400]}")


def write_moments(work: Path, watch: Watch, entries: Iterable[ledger.Entry]) -> None:
    """Those of the stages that were followed from their beginning, beside those of an earlier call."""
    file = work / FOLLOWED
    told = json.loads(file.read_text()) if file.exists() else {}
    for entry in entries:
        if entry.kind in STEPS and "imported" in (marks := watch.of(entry)):
            told[attempt(watch.root, entry).parent.name] = marks
    file.write_text(json.dumps(told))


def main() -> int:
    work, ranks = Path(sys.argv[1]).absolute(), sys.argv[2]
    told = {**WORDS, **{n: v for n, _, v in (word.partition("=") for word in sys.argv[3:]) if n in WORDS}}
    given = [word for word in sys.argv[3:] if word != "plan" and word.partition("=")[0] not in WORDS]
    verb = "plan" if "plan" in sys.argv[3:] else "submit" if told["address"] else "run"
    for half in (work / "model.part", work / "data.part"):
        shutil.rmtree(half, ignore_errors=True)
    if not (work / "model").exists():
        subprocess.run(
            [sys.executable, str(HERE / "random_model.py"), str(work / "model.part"), told["size"], ranks], check=True
        )
        (work / "model.part").rename(work / "model")
    if not (work / "data").exists():
        make_data(work / "data.part")
        (work / "data.part").rename(work / "data")
    words = [text.format(work=work, here=HERE, instruction=INSTRUCTION.replace("\\", "\\\\")) for text in SMALL]
    words += [f"recipe={told['recipe']}", f"scale=qwen2_5_vl_{'7b' if told['size'] == '7b' else '3b'}"]
    words += [f"sft.gpus={told['gpus']}", f"rl.verl.trainer.n_gpus_per_node={told['gpus']}"]
    words += OFTEN if told["size"] == "tiny" else ONLY_MODELS
    words += ALONE if told["gpus"] == told["nodes"] == "1" else ()
    words += INTERLEAVED if told["recipe"] == "interleaved" else ()
    if told["address"]:
        words += ["cluster=ray", f"cluster.address={told['address']}", f"cluster.gpus={told['gpus']}"]
        words += [f"cluster.nodes={told['nodes']}"]
    command = [sys.executable, "-m", f"synergy.{verb}", *words, *given]
    with Watch(work / "runs") as watch:
        code = subprocess.run(command, check=False).returncode
    if (work / "runs/ledger.jsonl").exists():
        entries = ledger.read(work / "runs/ledger.jsonl").values()
        summary(entries)
        write_moments(work, watch, entries)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
