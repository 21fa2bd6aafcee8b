"""The command line: help that teaches, and bad input that ends with one message, exit code 2 and nothing published."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from synergy import cli, compose, environments, paths
from synergy.errors import UserError

TRACE = "<think>3</think>\n\\boxed{3}"


def call(verb: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [str(environments.locate("verl")), "-m", f"synergy.{verb}", *words]
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent, env={**os.environ, **(env or {})}
    )


def refused(root: Path, told: str, *words: str, env: dict[str, str] | None = None) -> None:
    """The run ends with exit code 2 and a message that has ``told`` in it; no stage was published."""
    done = call("run", *words, f"run.dir={root}", env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("synergy: ")
    assert not list(root.glob("stages/*/output"))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("Could not find 'recipe/progresive'", ["recipe=progresive"]),
        ("You must specify 'recipe'", []),
        ("Could not find 'scale/huge'", ["recipe=sft", "scale=huge"]),
        ("sft.confg: there is no such key; did you mean sft.config?", ["recipe=sft", "sft.confg.learning_rate=1"]),
        ("did you mean recipe.rounds?", ["recipe=progressive", "recipe.round=3"]),
        ("could not be converted to Float", ["recipe=sft", "run.stall_minutes=long"]),
        ("did you mean learning_rate", ["recipe=sft", "+sft.config.learningrate=1e-3"]),
        ("LLaMA-Factory has no such template", ["recipe=sft", "model.template=qwen2_lv"]),
        ("verl refuses the rl config", ["recipe=rl", "+rl.verl.algorithm.adv_estimater=grpo"]),
        ("recipe.rounds=1", ["recipe=progressive", "recipe.rounds=1"]),
        ("no such folder", ["recipe=sft", "model.path=nowhere"]),
        ("40-digit commit", ["recipe=sft", "model.path=Qwen/Qwen2.5-VL-7B-Instruct"]),
        ("no Python at", ["recipe=base", "frameworks.vlmevalkit=/nowhere/python"]),
        ("data.train=s1_1.jsonl: the lab's digits", ["recipe=ablation/sft_s1_1"]),
        ("data.source=/nowhere", ["recipe=sft", "data.source=/nowhere"]),
        ("rl.module=nope.nope:", ["recipe=rl", "rl.module=nope.nope"]),
        ("rl.module=verl.nope:", ["recipe=rl", "rl.module=verl.nope"]),
        ("reads it all the same: +rl.verl_add.trainer.sav_freq", ["recipe=rl", "+rl.verl.trainer.sav_freq=1"]),
        ("job 2 of 2 (rl seed=-1): seed=-1: a number from 0", ["-m", "recipe=rl", "seed=0,-1"]),
        ("sft.config.learning_rate=inf: a number above 0", ["recipe=sft", "sft.config.learning_rate=inf"]),
        ("a setting of a stage (sft) is infinite or no number", ["recipe=sft", "+sft.config.neftune_noise_alpha=nan"]),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, told: str, words: list[str]) -> None:
    refused(tmp_path, told, *words)


IMPOSSIBLE = """
    sft.config.num_train_epochs=null sft.config.num_train_epochs=abc sft.config.num_train_epochs=0
    sft.config.save_total_limit=abc +sft.config.warmup_steps=null +sft.config.max_steps=1.5
    sft.config.warmup_ratio=2 sft.config.learning_rate=true sft.config.cutoff_len=null
    rl.verl.trainer.save_freq=null rl.verl.trainer.n_gpus_per_node=null rl.verl.trainer=null
    rl.verl.trainer.max_actor_ckpt_to_keep=abc rl.verl.trainer.nnodes=0 rl.verl.trainer.v1=abc rl.verl.data=null
    rl.verl.data=abc rl.verl.data.train_batch_size=0 rl.verl.data.train_batch_size=null
    rl.verl.data.train_batch_size=abc rl.verl.algorithm=null rl.verl.actor_rollout_ref=abc
    rl.verl.actor_rollout_ref.actor=abc rl.verl.critic.optim=abc rl.verl.actor_rollout_ref.actor.optim=abc
    +rl.verl.actor_rollout_ref.actor.policy_loss=abc
    rl.verl.actor_rollout_ref.actor.checkpoint.save_contents=null rl.verl_add.reward=null
    rl.verl.ray_kwargs.ray_init=null rl.verl_add.critic.ppo_infer_max_token_len_per_gpu=0 evaluate.runs=0
    +rl.verl.actor_rollout_ref.actor.ulysses_sequence_parallel_size=abc
    rl.verl.actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=null
    evaluate.runs=-1 evaluate.workers=0 evaluate.replicas=-2 evaluate.port=70000
    evaluate.sampling.temperature=-1.0 evaluate.sampling.top_p=3.0 evaluate.sampling.max_tokens=0
    evaluate.sampling.top_p=nan lengths.rl=-5 budget.rl_epochs=0 budget.rl_steps=-3 budget.rl_steps=0 sample.n=0
    sft.gpus=-1 data.sizes.train=-5 data.limit=-1 run.stall_minutes=-1.0 run.stage_hours=0.0 run.retries=-1
    seed=-1 seed=99999999999999999999 cluster.nodes=0 cluster.wait_minutes=-3.0 cluster.cpus=-3.0
    run.dir=s3://bucket/runs run.dir=
"""


@pytest.mark.parametrize("word", IMPOSSIBLE.split())
def test_a_value_that_cannot_be_is_told_with_its_key(word: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(word.lstrip('+'))}: .* (is wanted|belongs to run\.store)$"):
        compose.tasks(["recipe=two_stage", word])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("~sft.config.learning_rate", r"^sft\.config\.learning_rate is missing"),
        ("~rl.verl.data", r"^rl\.verl\.data\.train_batch_size is missing"),
        ("+data.sorce=/nope", r"^data\.sorce: there is no such key; did you mean data\.source"),
        ("data.sorce=/nope", r"^data\.sorce: there is no such key; did you mean data\.source"),
        ("+sed=1", r"^sed: .*did you mean seed\?"),
        ("+evaluate.run=8", r"^evaluate\.run: .*did you mean evaluate\.runs\?"),
        (
            "+evaluate.benchmarks.0.kid=open",
            r"^evaluate\.benchmarks\.0\.kid: .*did you mean evaluate\.benchmarks\.0\.kind",
        ),
        ("rl.verl.algorithm.adv=gae", r"write \+rl\.verl\.algorithm\.adv .*\+rl\.verl_add\.algorithm\.adv "),
        ("data.source=~/x", r"write data\.source=\$HOME/x$"),
        ("data.source=/tmp/dätä", """write 'data.source="/tmp/dätä"'$"""),
        ("run.dir=/tmp/a=b", """write 'run.dir="/tmp/a=b"'$"""),
    ],
)
def test_a_key_or_word_that_hydra_cannot_take_is_told_with_the_way_out(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        compose.tasks(["recipe=two_stage", word])


def test_what_the_frameworks_leave_open_stays_open() -> None:
    words = (
        "sft.config.warmup_ratio=null",
        "+sft.config.adam_beta1=0.8",
        "+rl.verl.algorithm.gamma=1.0",
        "+rl.env.A=b",
    )
    assert compose.tasks(
        ["recipe=two_stage", *words, "+cluster.stages.evaluate.gpus=1", "rl.verl.trainer.save_freq=-1"]
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data source of one good record."""
    folder = tmp_path / "source"
    folder.mkdir()
    Image.new("RGB", (140, 28)).save(folder / "x.png")
    write(folder, {"id": "a", "question": "How many?", "answer": "3", "images": ["x.png"], "trace": TRACE, "level": 1})
    return folder


def write(folder: Path, row: dict[str, object]) -> None:
    for name in ("train.jsonl", "val.jsonl", "bench_open.jsonl", "bench_choice.jsonl"):
        (folder / name).write_text(json.dumps(row) + "\n")


def test_bad_data_is_told_before_any_long_work(tmp_path: Path, source: Path) -> None:
    root, words = tmp_path / "runs", ("recipe=sft", f"data.source={source}")
    (source / "x.png").write_bytes(b"not an image")
    refused(root, "x.png can't be opened", *words)
    Image.new("RGB", (140, 28)).save(source / "x.png")
    good = json.loads((source / "train.jsonl").read_text())
    write(source, {**good, "level": None})
    refused(root, "no difficulty level", *words)
    write(source, good)
    (source / "train.jsonl").unlink()
    refused(root, "train.jsonl is missing", *words)
    write(source, {k: v for k, v in good.items() if k != "answer"})
    refused(root, "lacks ['answer']", *words)


def test_a_trace_over_the_cut_off_is_refused(tmp_path: Path, source: Path) -> None:
    driver = [str(environments.locate("verl")), "-m", "synergy.data.prepare"]
    from synergy import lab

    spec = {
        **{"part": "train", "source": str(source), "inputs_source": str(source), "base": str(lab.BASE)},
        **{"train": "train.jsonl", "validation": None, "instruction": "Think.", "limit": None, "cutoff_len": 40},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    done = subprocess.run(
        [*driver, str(tmp_path / "spec.json")], capture_output=True, text=True, cwd=paths.PACKAGE.parent
    )
    assert done.returncode == 2
    assert "longer than sft.config.cutoff_len=40" in done.stdout.splitlines()[-1]


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_told(tmp_path: Path, busy_port: int) -> None:
    refused(tmp_path, f"evaluate.port={busy_port} is in use", "recipe=base", f"evaluate.port={busy_port}")


def test_a_run_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "can't be written", "recipe=base")


def test_a_report_of_unfinished_stages_names_the_command(tmp_path: Path) -> None:
    done = call("report", "recipe=base", f"run.dir={tmp_path}")
    assert done.returncode == 2
    assert "synergy run" in done.stderr or "synergy.run" in done.stderr


def test_help_teaches() -> None:
    done = call("run", "--help")
    assert done.returncode == 0
    for word in ("synergy plan recipe=progressive", "recipe: base, ", "learning_rate", "-m recipe="):
        assert word in done.stdout


def test_plan_tells_everything_and_changes_nothing(tmp_path: Path) -> None:
    done = call("plan", "recipe=progressive", f"run.dir={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    assert "rl-3" in done.stdout and "llamafactory-cli train" in done.stdout and "GB of disk" in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_sweep_plans_every_job_and_each_stage_once(tmp_path: Path) -> None:
    done = call("plan", "-m", "recipe=base,sft", f"run.dir={tmp_path / 'new'}")
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(f"\n{name} ") for name in ("eval-base", "eval-sft")] == [1, 1]
    assert "7 stages in 2 jobs, 5 of them distinct: sharing saves 2" in done.stdout
    assert not (tmp_path / "new").exists()


def test_the_console_script_lists_its_verbs() -> None:
    argv = [
        sys.executable,
        "-c",
        "import sys; from synergy import cli; sys.argv = ['synergy', 'fly']; sys.exit(cli.main())",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    assert done.returncode == 2
    assert all(verb in done.stdout for verb in ("run", "plan", "report", "doctor"))


@pytest.mark.parametrize(
    ("told", "verb", "words"),
    [
        ("no such verb: data prep; there is synergy data prepare", "data", ["prep"]),
        ("leave recipe= out", "tag", ["recipe=sft"]),
        ("--address http://HEAD:8265", "job", ["list", "cluster.address=http://head:8265"]),
        ("add cluster=ray (a dry run needs no cluster.address)", "submit", ["recipe=sft", "--dry-run=slurm"]),
        ("is no run directory", "clean", ["recipe=base", "run.dir=/nowhere"]),
        ("is no folder", "push", ["/nowhere", "repo=ann/d"]),
        ("RAY_ADDRESS is not set); send it there: synergy submit", "run", ["recipe=rl", "cluster=ray"]),
    ],
)
def test_words_that_a_verb_can_not_take_are_one_message(told: str, verb: str, words: list[str]) -> None:
    done = call(verb, *words, env={"RAY_ADDRESS": ""})
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stdout + done.stderr


def test_a_refused_run_makes_no_run_directory(tmp_path: Path) -> None:
    refused(tmp_path / "runs", "did you mean learning_rate", "recipe=sft", "+sft.config.learningrate=1e-3")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("status", ["{0}/run"]),
        ("clean", ["{0}/run"]),
        ("report", ["{0}/run", "{0}/run"]),
        ("push", ["{0}/run", "repo=ann/d"]),
        ("plan", ["recipe=base", "run.dir={0}/run"]),
        ("plan", ["recipe=base", "run.dir={0}/runs", "model.path={0}/model"]),
        ("data", ["prepare", "run.dir={0}/runs", "data.sources=[{{name: a, path: {0}/rows.jsonl}}]"]),
    ],
)
def test_what_may_not_be_read_is_one_message(tmp_path: Path, verb: str, words: list[str]) -> None:
    locked = [tmp_path / name for name in ("run", "model", "rows.jsonl")]
    for folder in locked[:2]:
        folder.mkdir()
    locked[2].write_text('{"id": "a", "question": "How many?", "answer": "3"}\n')
    for place in locked:
        place.chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    argv = [
        *drop,
        str(environments.locate("verl")),
        "-m",
        f"synergy.{verb}",
        *(word.format(tmp_path) for word in words),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    for folder in locked[:2]:
        folder.chmod(0o700)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"synergy: {tmp_path}/") and "Permission denied; see that" in line


def test_an_error_of_no_file_keeps_its_traceback() -> None:
    def act() -> None:
        raise OSError("what no user can mend")

    with pytest.raises(OSError, match="no user"):
        cli.ended(act)


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("submit", "--dry-run=kuberay"),
        ("tag", "recipe.questions=benchmarks"),
        ("plan", "does nothing"),
        ("report", "A B ..."),
    ],
)
def test_help_begins_with_the_verb(verb: str, told: str) -> None:
    done = call(verb, "--help")
    assert done.returncode == 0, done.stderr
    own, general, _ = done.stdout.partition("synergy: which way of combining")
    assert f"synergy {verb}" in own and told in own and general


def test_the_module_is_the_console_script(tmp_path: Path) -> None:
    done = call("cli", "plan", "recipe=base", f"run.dir={tmp_path / 'new'}")
    assert done.returncode == 0 and "eval-base" in done.stdout, done.stderr
    done = call("cli", "fly")
    assert done.returncode == 2 and "no such verb: fly; verbs: run, submit" in done.stderr


def test_the_plan_of_a_model_that_is_not_here_says_what_it_can_not_tell(tmp_path: Path) -> None:
    words = [
        "-m",
        "recipe=sft,rl",
        "model.path=Nobody/Nothing",
        f"model.revision={'a' * 40}",
        f"run.dir={tmp_path / 'new'}",
    ]
    done = call("plan", *words, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    told = "disk, GPU memory and GPU-hours of sft, rl are not known; download it first: hf download Nobody/Nothing --revision a"
    assert told in done.stdout
