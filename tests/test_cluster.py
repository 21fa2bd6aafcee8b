"""Clusters without one: what stages need, what fits side by side, and the scripts for Slurm and Kubernetes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml
from test_strategies import config

from synergy import paths, stages, strategies
from synergy.cluster import attach, lacks, manifests, needs
from synergy.cluster.needs import Need, Node
from synergy.cluster.room import Room, fits
from synergy.driver import side_by_side
from synergy.driver.plan import Step
from synergy.errors import StageFailed, UserError
from synergy.stages import Command, Job, Stage
from synergy.stages.verl_keys import flatten

SBATCH = set(json.loads(Path(__file__).with_name("sbatch_options.json").read_text())["options"])


def node(gpus: int, cpus: float = 8.0, memory_gb: float = 64.0) -> Node:
    return Node("id", "name", gpus, cpus, memory_gb)


def test_stages_say_what_they_need_and_their_settings_are_otherwise_the_same() -> None:
    words = [
        "cluster=ray",
        "cluster.nodes=2",
        "cluster.gpus=4",
        "+cluster.stages.evaluate.gpus=1",
        "rl.module=verl_fork",
    ]
    there, here = (strategies.stages(config("model_merging", *more)) for more in (words, ()))
    found = {stage.name: needs.of(stage) for stage in there}
    assert found["sft"] == Need(2, 4) and found["eval-base"] == Need(1, 1)
    assert found["rl"] == Need(2, 4, 12, other_cpus=2), "verl claims three CPUs beside each GPU, and two for its queue"
    assert found["data"] is found["merge-0.5"] is None
    for one, other in zip(there, here, strict=True):
        settings = {name: value for name, value in one.settings.items() if name != needs.SETTING}
        assert settings == dict(other.settings)
        assert stages.kind(one.kind).identity(one.settings) == stages.kind(one.kind).identity(other.settings)


def test_verl_claims_as_many_cpus_beside_each_gpu_still() -> None:
    base = pytest.importorskip("verl.single_controller.ray.base")
    assert base.ResourcePoolManager.max_colocate_count == needs.VERL_CPUS


def test_rl_claims_the_cpus_of_verls_queue_too() -> None:
    def asked(word: str) -> dict[str, Need]:
        made = strategies.stages(config("rl", "cluster=ray", "scale=qwen2_5_vl_7b", "data.source=/data", word))
        return {stage.kind: need for stage in made if (need := needs.of(stage))}

    found = asked("rl.verl.trainer.n_gpus_per_node=4")
    assert (found["rl"].cpus, found["rl"].other_cpus, found["evaluate"].other_cpus) == (12, 9, 0)
    assert asked(f"+rl.verl.{needs.UNITS}=2")["rl"].other_cpus == 3


@pytest.mark.parametrize("scale", ["tiny", "qwen2_5_vl_7b"])
def test_on_one_host_ray_has_what_verl_claims(scale: str) -> None:
    """Beside each GPU, and one for TransferQueue's controller and each of its storage units, of which verl has 8."""
    verl = config("rl", f"scale={scale}", "data.source=/data").rl.verl
    units = flatten(verl).get(needs.UNITS, 8)
    claimed = needs.VERL_CPUS * verl["trainer"]["n_gpus_per_node"] + 1 + units
    assert verl["ray_kwargs"]["ray_init"]["num_cpus"] >= claimed


@pytest.mark.parametrize(
    ("need", "there", "told"),
    [
        (Need(1, 1, 3), [node(1, cpus=2)],
         "a stage needs 1 node with 1 GPU and 3 CPUs, and 0 of its 1 nodes have that: name 1 GPUs, 2 CPUs"),
        (Need(1, 2, 6, 9), [], "a stage needs 1 node with 2 GPUs, 6 CPUs and 9 GB of memory, and it has no nodes yet"),
        (Need(1, 1, 3), [node(1, cpus=3)], ""),
        (Need(2, 1, 3, other_cpus=9), [node(1, cpus=7), node(1, cpus=7)],
         "a stage needs 2 nodes with 1 GPU and 3 CPUs, and 15 CPUs in all, and it has 14 CPUs: name 1 GPUs, 7 CPUs"),
        (Need(2, 1, 3, other_cpus=9), [node(1, cpus=7), node(1, cpus=7), node(0, cpus=1)], ""),
    ],
)  # fmt: skip
def test_what_is_lacking_says_all_that_is_needed(need: Need, there: list[Node], told: str) -> None:
    assert (lacks.sizes([need], there, late=True) or "").startswith(told)


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ("neither a stage of this recipe nor a kind", "+cluster.stages.evaluation.gpus=1"),
        ("is none of nodes, gpus, cpus, memory_gb", "+cluster.stages.sft.gpu=1"),
        ("runs on one node, not on 2", "+cluster.stages.evaluate.nodes=2"),
        ("nodes=0 can't be had: nodes is a whole number from 1 on", "+cluster.stages.sft.nodes=0"),
        ("gpus=0.5 can't be had: gpus is a whole number from 0 on", "+cluster.stages.evaluate.gpus=0.5"),
        ("cpus=-1 can't be had: cpus is a number from 0 on", "+cluster.stages.sft.cpus=-1"),
        ("memory_gb=inf can't be had", "+cluster.stages.sft.memory_gb=inf"),
        ("is one of local, ray", "cluster.kind=slurm"),
    ],
)
def test_needs_that_can_not_be_are_refused(told: str, word: str) -> None:
    with pytest.raises(UserError, match=told):
        strategies.stages(config("sft", "cluster=ray", word))


@pytest.mark.parametrize(
    ("fine", "wanted", "there"),
    [
        (True, [Need(1, 1), Need(1, 1)], [node(1), node(1)]),
        (False, [Need(1, 1), Need(1, 1), Need(1, 1)], [node(1), node(1)]),
        (True, [Need(1, 1), Need(2, 8)], [node(9), node(8)]),
        (False, [Need(2, 8)], [node(16)]),
        (True, [Need(1, 4), Need(1, 2), Need(1, 2)], [node(4), node(4)]),
        (False, [Need(1, 0, 1, 100)], [node(0)]),
        (False, [Need(1, 0, 6), Need(1, 0, 6)], [node(0)]),
        (True, [Need(1, 0)], [node(0)]),
        (False, [Need(1, 1, 3, other_cpus=9)], [node(1)]),
        (True, [Need(1, 1, 3, other_cpus=9)], [node(1), node(0, 4)]),
        (False, [Need(1, 1, 3, other_cpus=9), Need(1, 0, 1)], [node(1), node(0, 4)]),
    ],
)
def test_what_fits_side_by_side(fine: bool, wanted: list[Need], there: list[Node]) -> None:
    assert fits(wanted, there) is fine


def steps(tmp_path: Path, **inputs: list[str]) -> list[Step]:
    need = {needs.SETTING: {"nodes": 1, "gpus": 1, "cpus": 1.0, "memory_gb": 0.0}}
    made = [Stage(name, "sft", need, {read: read for read in reads}) for name, reads in inputs.items()]
    return [Step(stage, stage.name, {}, tmp_path, {}, "run", "") for stage in made]


def run(todo: list[Step], gpus: int, do: Callable[[Step], None], seconds: float = 1.0) -> list[str]:
    notes: list[str] = []
    room = Room(seconds, lambda: [node(gpus)])
    try:
        side_by_side.run(todo, room, do, lambda step, text: notes.append(text), side_by_side.Stop())
    finally:
        assert not room.claims
    return notes


def test_independent_stages_run_at_once_where_they_fit_and_in_turn_where_not(tmp_path: Path) -> None:
    todo = steps(tmp_path, sft=[], rl=[], merged=["sft", "rl"])
    for gpus, most in ((2, 2), (1, 1)):
        lock, now, seen, order = threading.Lock(), [0], [0], []

        def do(
            step: Step,
            lock: threading.Lock = lock,
            now: list[int] = now,
            seen: list[int] = seen,
            order: list[str] = order,
        ) -> None:
            with lock:
                now[0] += 1
                seen[0] = max(seen[0], now[0])
                order.append(step.stage.name)
            time.sleep(0.2)
            with lock:
                now[0] -= 1

        run(todo, gpus, do)
        assert seen[0] == most and sorted(order[:2]) == ["rl", "sft"] and order[2] == "merged"


def test_a_cluster_that_does_not_answer_once_costs_nothing(tmp_path: Path) -> None:
    """As in the moment in which a node is lost."""
    todo, asked, done = steps(tmp_path, a=[], b=[], c=[]), [0], list[str]()

    def there() -> list[Node]:
        asked[0] += 1
        if asked[0] == 2:
            raise UserError("no answer")
        return [node(1)]

    def do(step: Step) -> None:
        time.sleep(0.2)
        done.append(step.stage.name)

    side_by_side.run(todo, Room(5.0, there), do, lambda step, text: None, side_by_side.Stop())
    assert sorted(done) == ["a", "b", "c"] and asked[0] > 2
    asked[0] = 1
    with pytest.raises(UserError, match="no answer"):  # of one that never did: this is no job of a cluster
        side_by_side.run(todo, Room(5.0, there), do, lambda step, text: None, side_by_side.Stop())


def test_one_look_at_the_cluster_serves_all_that_wait(tmp_path: Path) -> None:
    asked, stages_ = list[int](), [step.stage for step in steps(tmp_path, a=[], b=[], c=[], d=[])]
    room = Room(1.0, lambda: asked.append(1) or [node(3)])
    assert room.claim(stages_) == stages_[:3] and len(asked) == 1


def test_only_a_node_with_actors_of_the_stage_is_missed(tmp_path: Path) -> None:
    living, used = {"a", "b", "c"}, {"mine": {"a"}, "other": {"b"}}

    def there() -> list[Node]:
        return [Node(name, f"node {name}", 1, 8.0, 64.0) for name in sorted(living)]

    room, (step,) = Room(1.0, there, lambda namespace: used[namespace] & living), steps(tmp_path, rl=[])
    room.claim([step.stage])

    def lost() -> str | None:
        room.claims["rl"].looked = 0.0  # else every few seconds
        return room.lost(step.stage, "mine")

    assert lost() is None
    living.discard("b")
    assert lost() is None, "another job's"
    used["mine"] = {"c"}  # Ray may tell the death of an actor before that of its node
    assert lost() is None
    living.discard("a")
    assert lost() == "node a"
    assert lost() is None


def test_a_stage_waits_as_long_as_the_room_is_this_runs_own(tmp_path: Path) -> None:
    first, second = (step.stage for step in steps(tmp_path, first=[], second=[]))
    room, asked = Room(1.0, lambda: [node(1)]), [0]
    room.claim([first])

    def still() -> None:
        asked[0] += 1
        if asked[0] == 2:
            room.release(first)

    assert room.wait([second], lambda text: None, still) is second


def test_what_most_wait_for_begins_first(tmp_path: Path) -> None:
    todo, order = steps(tmp_path, base=[], sft=[], seen=["sft"], rl=["sft"], scored=["rl"]), list[str]()
    run(todo, 1, lambda step: order.append(step.stage.name))
    assert order == ["sft", "rl", "base", "seen", "scored"]


@pytest.mark.parametrize(("gpus", "third"), [(2, "rl"), (3, "base")])
def test_room_is_kept_for_what_waits_for_its_data_alone(tmp_path: Path, gpus: int, third: str) -> None:
    todo, order = steps(tmp_path, data=[], base=[], sft=[], rl=["data"], merged=["sft", "rl"]), list[str]()
    todo[0] = replace(todo[0], stage=Stage("data", "prepare", {}, {}))

    def do(step: Step) -> None:
        order.append(step.stage.name)
        time.sleep(0.5)

    run(todo, gpus, do)
    assert order[:3] == ["data", "sft", third], "an evaluation takes the node of RL, whose data come in a moment"


def test_none_is_kept_for_data_that_another_stage_must_make_first(tmp_path: Path) -> None:
    todo, order = steps(tmp_path, sample=[], mix=["sample"], sft=["mix"], base=[]), list[str]()
    todo[1] = replace(todo[1], stage=Stage("mix", "prepare", {}, {"sample": "sample"}))

    def do(step: Step) -> None:
        order.append(step.stage.name)
        time.sleep(0.5)

    run(todo, 2, do)
    assert order == ["sample", "base", "mix", "sft"]


def test_after_a_failure_what_runs_is_finished_and_nothing_begins(tmp_path: Path) -> None:
    todo, done = steps(tmp_path, bad=[], good=[], next=["good"]), []

    def do(step: Step) -> None:
        if step.stage.name == "bad":
            raise StageFailed("bad failed")
        time.sleep(0.5)
        done.append(step.stage.name)

    with pytest.raises(StageFailed, match="bad failed"):
        run(todo, 2, do)
    assert done == ["good"]


def test_a_stage_waits_for_nodes_and_gives_up_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(
        StageFailed, match=r"needs 1 node with 1 GPU, and the cluster has .* 0 GPUs.*cluster.wait_minutes"
    ):
        run(steps(tmp_path, sft=[]), 0, lambda step: None)
    came, asked = [node(0)], [0]

    def there() -> list[Node]:
        asked[0] += 1
        return came if asked[0] < 2 else [node(1)]

    notes: list[str] = []
    room = Room(60.0, there)
    todo = steps(tmp_path, sft=[])
    side_by_side.run(todo, room, lambda step: None, lambda step, text: notes.append(text), side_by_side.Stop())
    assert len(notes) <= 1 and asked[0] >= 2


def test_verl_attaches_and_all_else_goes_out_by_the_launcher() -> None:
    planned = {
        s.name: s for s in strategies.stages(config("two_stage", "cluster=ray", "cluster.nodes=2", "cluster.gpus=8"))
    }
    rl, sft = planned["two_stage"], planned["sft"]
    job = Job(rl, "k", Path("/runs/stages/rl-1"), Path("/runs/stages/rl-1/attempt-2"), {}, {})
    words = attach.verl_overrides(job, {"VERL_X": "1", "RAY_AUTH_MODE": "token", "VERL_USE_EXTERNAL_MODULES": "a"})
    assert words["trainer.nnodes"] == 2 and words["trainer.n_gpus_per_node"] == 8
    assert words["++ray_kwargs.ray_init.address"] == "auto" and words["++ray_kwargs.ray_init.num_cpus"] is None
    assert words["++ray_kwargs.ray_init.namespace"] == "rl-1-attempt-2"
    envs = {name.rpartition(".")[2]: value for name, value in words.items() if "env_vars" in name}
    assert envs == {"VERL_X": "1", "VERL_USE_EXTERNAL_MODULES": "a,verl_queue,gloo_interface"}, (
        "what concerns Ray is the cluster's to say"
    )
    command = Command(("llamafactory-cli", "train", "x.yaml"), {"A": "1", "RAY_B": "1"})
    assert attach.spread(command, rl) is command
    out = attach.spread(command, sft)
    assert out.argv[-4:] == ("--", "llamafactory-cli", "train", "x.yaml") and "--nodes=2" in out.argv
    assert "--env=A" in out.argv and "RAY_B" not in out.env
    local = strategies.stages(config("sft"))
    assert all(attach.spread(command, stage) is command for stage in local)


def dry(form: str, *words: str) -> str:
    argv = [sys.executable, "-m", "synergy.submit", f"--dry-run={form}", "recipe=two_stage", "cluster=ray", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words", [[], ["cluster.nodes=4", "cluster.gpus=8", "cluster.memory_gb=500", '+cluster.env.A="b c\'d"']]
)
def test_the_slurm_script_is_bash_with_options_that_sbatch_knows(words: list[str], tmp_path: Path) -> None:
    text = dry("slurm", f"run.dir={tmp_path}/a b", *words)
    (tmp_path / "job.sh").write_text(text)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.M))
    assert set(options) <= SBATCH and len(re.findall("(?m)^#SBATCH", text)) == len(options)
    first_command = min(n for n, row in enumerate(text.splitlines()) if row and not row.startswith("#"))
    assert max(n for n, row in enumerate(text.splitlines()) if row.startswith("#SBATCH")) < first_command
    assert options["nodes"] == ("4" if words else "1") and f"'run.dir={tmp_path}/a b'" in text
    assert ("ray start --address" in text) is bool(words)
    assert text.count("--memory=500000000000 --block") == (2 if words else 0)


def test_a_folder_with_a_space_is_on_the_slurm_script_s_path() -> None:
    text = dry("slurm", "cluster.python=/opt/my envs/bin/python")
    assert "export PATH='/opt/my envs/bin':\"$PATH\"" in text


def test_the_rayjob_has_room_for_its_own_stages() -> None:
    words = ("cluster=ray", "scale=qwen2_5_vl_7b", "data.source=/data", "cluster.nodes=2", "cluster.gpus=8")
    wanted = [need for stage in strategies.stages(config("rl", *words)) if (need := needs.of(stage))]
    cluster = replace(config("rl", *words).cluster, image="image", claim="claim")
    made = yaml.safe_load(manifests.render("kuberay", cluster, "rl", wanted, "true", "python"))["spec"][
        "rayClusterSpec"
    ]
    (group,) = made["workerGroupSpecs"]
    pods = [made["headGroupSpec"], *([group] * group["replicas"])]
    sizes = [pod["template"]["spec"]["containers"][0]["resources"]["limits"] for pod in pods]
    there = [node(int(size.get("nvidia.com/gpu", 0)), float(size["cpu"])) for size in sizes]
    assert all(fits([need], there) for need in wanted)


def test_the_rayjob_is_what_its_crd_asks_for() -> None:
    words = ["cluster.image=registry/synergy:1", "cluster.claim=runs", "cluster.nodes=2", "cluster.gpus=8"]
    made = yaml.safe_load(dry("kuberay", *words, "+cluster.env.A='b \"c'", "cluster.memory_gb=500"))
    schema = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
    jsonschema.validate(made, schema)
    (group,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["replicas"] == 2 and limits["nvidia.com/gpu"] == "8" and limits["memory"] == "500G"
    assert json.loads(made["spec"]["runtimeEnvYAML"])["env_vars"] == {"A": 'b "c'}
    assert "-m synergy.run recipe=two_stage cluster=ray" in made["spec"]["entrypoint"]
    group["replicas"] = "two"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)


@pytest.mark.parametrize(
    ("form", "told", "words"),
    [
        ("kuberay", "needs cluster.image=NAME", []),
        ("pbs", "is one of slurm, kuberay", []),
        ("slurm", "data.source is not set", ["scale=qwen2_5_vl_3b"]),
        ("slurm", "is a hub name: set model.revision", ["scale=qwen2_5_vl_3b", "data.source=/data"]),
        ("slurm", "benchmark MathVision: tagged=",
         ["scale=qwen2_5_vl_3b", "data.source=/data", f"model.revision={'a' * 40}"]),
    ],
)  # fmt: skip
def test_a_dry_run_that_lacks_something_says_what(form: str, told: str, words: list[str]) -> None:
    """Before hours in a queue."""
    argv = [sys.executable, "-m", "synergy.submit", f"--dry-run={form}", "recipe=sft", "cluster=ray", *words]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=paths.PACKAGE.parent)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
