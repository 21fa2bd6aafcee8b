"""Kind ``merge``: mergekit, ``mergekit-yaml config.yaml OUT``, on an SFT and an RL model of one base.

mergekit knows Qwen2.5-VL by its published tensor names alone (its architectures/qwen2_5_vl.json, 0.1.5: text, projector and
vision tower, lm_head optional and tied to the embedding), so models go in under these names, and what comes out is verified.
That file gives the projector two layers, so its tensors are merged twice, and where a new output file begins in between, they
are written twice: the index has the last word (``checkpoint.read``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from synergy import paths
from synergy.driver import checkpoint, handoff
from synergy.driver.checkpoint import FLOATS, Tensor
from synergy.errors import StageFailed, UserError
from synergy.stages import Command, Job, Progress, Stage

IDENTITY = frozenset({"method", "parameters", "ratio", "dtype", "seed"})
RUNTIME = frozenset({"options", "env"})
FRAMEWORKS: tuple[str, ...] = ("mergekit",)
PACKAGES: tuple[str, ...] = ("mergekit", "torch", "transformers")
LOADER = None
NATIVE = "mergekit-yaml config.yaml OUT"
VERSION = 1

ROLES = ("base", "sft", "rl")
_TASK = frozenset({"density", "normalize", "lambda", "rescale", "int8_mask"})
PARAMETERS: dict[str, frozenset[str]] = {
    "linear": frozenset({"normalize"}),
    "slerp": frozenset(),
    "task_arithmetic": _TASK - {"density", "rescale"},
    "ties": _TASK,
    "dare_ties": _TASK,
    "dare_linear": _TASK,
}
"""Method -> mergekit's parameters that a recipe may set; weight and t follow from the ratio. mergekit itself ignores a name
that it does not know."""
SPARSE = ("ties", "dare_ties", "dare_linear")
"""Methods that are what they are through ``density``, which mergekit sets to 1: nothing dropped."""
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
PARENTS = "parents.json"


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in IDENTITY}


def check(stage: Stage, pythons: Mapping[str, str]) -> None:
    given = stage.settings
    method, parameters, ratio = given["method"], given["parameters"], given["ratio"]
    if method not in PARAMETERS:
        raise UserError(f"recipe.method={method!r} is unknown; one of: {', '.join(PARAMETERS)}")
    unknown = sorted(set(parameters) - PARAMETERS[method])
    if unknown:
        known = ", ".join(sorted(PARAMETERS[method])) or "none"
        raise UserError(f"recipe.parameters.{unknown[0]}: not a parameter of mergekit's {method}; known: {known}")
    for name, value in parameters.items():
        if not isinstance(value, int | float):
            raise UserError(f"recipe.parameters.{name}={value!r}: one number or boolean for the whole model is wanted")
    if method in SPARSE and not 0 < parameters.get("density", 0) <= 1:
        raise UserError(
            f"recipe.method={method} needs the share of each delta that is kept: set recipe.parameters.density above 0, "
            "at most 1 (on the command line: +recipe.parameters.density=0.5)"
        )
    if parameters.get("lambda", 1.0) <= 0:
        raise UserError(f"recipe.parameters.lambda={parameters['lambda']}: above 0; at 0 the merge is the base model")
    if not 0 < ratio < 1:
        raise UserError(f"SFT ratio {ratio}: above 0 and below 1; at 0 and 1 the merge is a parent")
    if given["dtype"] not in DTYPES:
        raise UserError(f"merge.dtype={given['dtype']!r}: one of {', '.join(DTYPES)}")


def models(inputs: Mapping[str, Path]) -> dict[str, dict[str, Tensor]]:
    """Role -> tensors by published name, tied heads left out. Raises UserError unless all three models are of one
    architecture: equal names and shapes, floating point."""
    found = {role: checkpoint.read(inputs[role]) for role in ROLES}
    configs = {role: json.loads((inputs[role] / "config.json").read_text()) for role in ROLES}
    base = found["base"]
    if checkpoint.tied(inputs["base"]):
        for tensors in found.values():
            tensors.pop("lm_head.weight", None)
    for role in ("sft", "rl"):
        mend = "merge models that were trained from this base"
        for name in ("architectures", "model_type"):
            if configs[role].get(name) != configs["base"].get(name):
                told = f"{configs[role].get(name)}, the base {inputs['base']} {configs['base'].get(name)}"
                raise UserError(f"merge: the {role} model {inputs[role]} has {name} {told}; {mend}")
        missing, extra = sorted(set(base) - set(found[role])), sorted(set(found[role]) - set(base))
        shapes = [
            name for name, tensor in base.items() if name in found[role] and found[role][name].shape != tensor.shape
        ]
        if missing or extra or shapes:
            raise UserError(
                f"merge: the {role} model {inputs[role]} does not have the tensors of the base {inputs['base']}: "
                f"missing {missing[:3]}, unexpected {extra[:3]}, other shape {shapes[:3]}; {mend}"
            )
        odd = [name for name, tensor in found[role].items() if tensor.dtype not in FLOATS]
        if odd:
            raise UserError(
                f"merge: {odd[0]} of {inputs[role]} is {found[role][odd[0]].dtype}; only floats can be merged"
            )
    return found


def native(settings: Mapping[str, Any], inputs: Mapping[str, Path], out_dtype: str | None) -> dict[str, Any]:
    """The YAML that mergekit gets, in its own keys."""
    base, sft, rl = (str(inputs[role]) for role in ROLES)
    method, ratio, parameters = settings["method"], settings["ratio"], dict(settings["parameters"])
    config: dict[str, Any] = {"merge_method": method}
    if method == "slerp":
        config |= {"base_model": rl, "models": [{"model": rl}, {"model": sft}]}
        parameters["t"] = ratio
    else:
        config |= {} if method == "linear" else {"base_model": base}
        shares = ((sft, ratio), (rl, 1 - ratio))
        config["models"] = [{"model": model, "parameters": {"weight": share}} for model, share in shares]
    config |= {"parameters": parameters} if parameters else {}
    return config | {"dtype": settings["dtype"]} | ({"out_dtype": out_dtype} if out_dtype else {})


def command(job: Job) -> Command:
    found = models(job.inputs)
    shutil.rmtree(job.work / "out", ignore_errors=True)
    inputs = {role: _published(job.inputs[role], job.work / role) for role in ROLES}
    dtypes = {name: dtype for name, dtype in DTYPES.items() if {t.dtype for t in found["base"].values()} == {dtype}}
    file = job.attempt / "config.yaml"
    file.write_text(yaml.safe_dump(native(job.settings, inputs, next(iter(dtypes), None)), sort_keys=False))
    python = Path(job.pythons["mergekit"])
    options = ["--no-copy-tokenizer", "--no-write-model-card", f"--random-seed={job.settings['seed']}"]
    argv = (str(python.parent / "mergekit-yaml"), str(file), str(job.work / "out"), *options, *job.settings["options"])
    env = {"PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1", **paths.env_path(python), **job.settings["env"]}
    return Command(argv, env, cwd=job.attempt)


def _published(model: Path, copy: Path) -> Path:
    """The model itself, or a copy under published names if its tensors bear others."""
    tensors = checkpoint.read(model)
    if all(tensor.stored == name for name, tensor in tensors.items()):
        return model
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy)
    handoff.rename_tensors(copy, str)
    return copy


def resume_point(job: Job) -> int | None:
    """mergekit starts over: it takes minutes."""
    return None


def progress(job: Job) -> Progress | None:
    """From mergekit's own progress bar."""
    file = job.attempt / "log.txt"
    found = (
        re.findall(r"Executing graph:[^\r\n]*?(\d+)/(\d+)", file.read_text(errors="replace")) if file.exists() else []
    )
    return Progress(int(found[-1][0]), int(found[-1][1]), "task") if found else None


def collect(job: Job, out: Path) -> dict[str, Any]:
    from synergy.stages import merge_check  # numpy: not while planning

    product, found = job.work / "out", models(job.inputs)
    made = checkpoint.read(product)
    if checkpoint.tied(job.inputs["base"]):
        made.pop("lm_head.weight", None)
    figures = merge_check.verify(made, found, job.settings)
    figures |= handoff.publish(product, job.inputs["base"], job.inputs["rl"], out)
    figures |= compare(job, out / PARENTS)
    return {**figures, "method": job.settings["method"], "ratio": job.settings["ratio"]}


def compare(job: Job, file: Path) -> dict[str, Any]:
    """The look at both parents (``merge/compare.py``), as a file beside the weights and, for the whole model, as figures."""
    argv = [sys.executable, "-m", "merge.compare", *(str(job.inputs[role]) for role in ROLES), "--json", str(file)]
    (job.attempt / "parents.txt").write_text(_run(argv))
    (whole,) = (row for row in json.loads(file.read_text())["modules"] if row["module"] == "all")
    return {name: whole[name] for name in ("delta_ratio", "cosine", "sign_conflict")}


def _run(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths.pythonpath()})
    if done.returncode:
        raise StageFailed(f"merge.compare ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
