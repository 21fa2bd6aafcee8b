"""All requests of an evaluation, before VLMEvalKit walks through runs and benchmarks and finds each answer in the cache.

VLMEvalKit asks one benchmark of one run at a time and waits for its slowest response before it begins the next: the server
idles at each of these ends, and the runs of a question lie far apart, when its prefix is no longer cached. Here all go
through one bounded pool per server, the runs of a question one after the other to the same server. The prompts are those
of VLMEvalKit's dataset classes, so that its walk makes the same requests, byte for byte.
"""

# VLMEvalKit is untyped, so its classes count as Any.
# mypy: disable-error-code="misc"

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from eval import datasets, session
from eval.model import SynergyEndpoint
from eval.registry import KINDS
from eval.spec import Spec


def everything(spec: Spec) -> None:
    """Returns once every answer is in the cache. Raises AskError naming the first question that got none."""
    state = session.current()
    runs = [SynergyEndpoint(spec.model_name, run) for run in range(spec.runs)]
    asked: list[Future[str]] = []
    with ExitStack() as stack:
        each = max(1, spec.workers // len(spec.endpoints))
        pools = [stack.enter_context(ThreadPoolExecutor(each)) for _ in spec.endpoints]
        for benchmark, index, prompt in prompts(spec):
            if state.failure is not None:
                break
            pool = pools[state.server(benchmark, index)]
            asked.extend(pool.submit(run.generate, prompt, benchmark) for run in runs)
    state.check()
    for answer in asked:
        answer.result()


def prompts(spec: Spec) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(benchmark, index, VLMEvalKit's message) of every question, each built when the one before is on its way."""
    state = session.current()
    for benchmark in spec.benchmarks:
        try:
            table = getattr(datasets, KINDS[benchmark.kind])(dataset=benchmark.name)
            for row in range(len(table.data)):
                prompt = table.build_prompt(row)
                yield benchmark.name, str(prompt[0]["question"]), prompt
        except Exception as err:
            state.fail(f"benchmark {benchmark.name}: cannot read {benchmark.tsv}: {type(err).__name__} {err}")
            return
