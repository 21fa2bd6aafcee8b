"""Starting VLMEvalKit's own `run.main()` on our classes, in a work directory that nothing of an earlier attempt survives in."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from eval.registry import KINDS
from eval.spec import Spec, SpecError

_UNSET = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MMEVAL_ROOT",
    "EVAL_PROXY",
    "SPLIT_THINK",
    "SKIP_ERR",
)


def kit_dir(spec: Spec) -> Path:
    """VLMEvalKit's work directory of this attempt."""
    return spec.work_dir / "vlmevalkit"


def prepare(spec: Spec) -> None:
    """Fresh directory, environment and data root; to be called before the first import of vlmeval.

    VLMEvalKit reuses predictions and dumped images that lie under the same names, and a pickle damaged by a kill makes it
    skip a benchmark with exit code 0. Our answer cache makes starting over free, so nothing is kept.
    """
    shutil.rmtree(kit_dir(spec), ignore_errors=True)
    root = kit_dir(spec) / "data"
    root.mkdir(parents=True)
    for bench in spec.benchmarks:
        (root / f"{bench.name}.tsv").symlink_to(bench.tsv.absolute())
    for name in _UNSET:
        os.environ.pop(name, None)
    # xlsx, the default, cuts a prediction at 32,767 characters. The GPUs belong to the server, not to this process.
    os.environ.update(LMUData=str(root), PRED_FORMAT="json", CUDA_VISIBLE_DEVICES="")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def load() -> Callable[[], None]:
    """Import VLMEvalKit (seconds) and register our classes under their names; returns its `main`. Raises SpecError."""
    try:
        import vlmeval.api
        import vlmeval.dataset

        from eval import datasets, model
    except ImportError as err:
        raise SpecError(f"{sys.executable} cannot import VLMEvalKit: {err}; mend the evaluation environment") from err
    setattr(vlmeval.api, model.SynergyEndpoint.__name__, model.SynergyEndpoint)
    for name in KINDS.values():
        setattr(vlmeval.dataset, name, getattr(datasets, name))
    main: Callable[[], None] = _run_module().main
    return main


def _run_module() -> ModuleType:
    """PyPI's ms-vlmeval ships `vlmeval/run.py`; upstream keeps it beside the package, in the checkout."""
    import vlmeval

    if importlib.util.find_spec("vlmeval.run"):
        return importlib.import_module("vlmeval.run")
    path = Path(vlmeval.__path__[0]).parent / "run.py"
    found = importlib.util.spec_from_file_location("vlmeval_run", path)
    if found is None or found.loader is None or not path.exists():
        raise ImportError(f"VLMEvalKit has neither vlmeval/run.py nor {path}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def ask(spec: Spec) -> None:
    """Every question of every benchmark and run, at once; see eval/ask.py. Raises AskError."""
    from eval import ask

    ask.everything(spec)


def run_name(spec: Spec, run: int) -> str:
    """The model's name in VLMEvalKit: one per run, so that no run can be taken for another."""
    return f"{spec.model_name}-run{run}"


def run(spec: Spec, main: Callable[[], None]) -> None:
    """All runs and benchmarks through VLMEvalKit's command line. It logs errors and returns: the session knows them."""
    models = {
        run_name(spec, i): {"class": "SynergyEndpoint", "served": spec.model_name, "run": i} for i in range(spec.runs)
    }
    data = {b.name: {"class": KINDS[b.kind], "dataset": b.name} for b in spec.benchmarks}
    config = kit_dir(spec) / "config.json"
    config.write_text(json.dumps({"model": models, "data": data}, indent=1), encoding="utf-8")
    arguments = ["--config", str(config), "--work-dir", str(kit_dir(spec) / "runs"), "--api-nproc", str(spec.workers)]
    before, sys.argv = sys.argv, ["vlmeval", *arguments]
    try:
        main()
    finally:
        sys.argv = before


def find(spec: Spec, run: int, benchmark: str, ending: str) -> Path | None:
    """A file that VLMEvalKit or our scoring left for a run: in MODEL/ (ms-vlmeval) or MODEL/T<time>/ (upstream)."""
    name = f"{run_name(spec, run)}_{benchmark}{ending}"
    return next((kit_dir(spec) / "runs" / run_name(spec, run)).rglob(name), None)
