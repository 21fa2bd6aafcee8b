"""vLLM's start without copies of the tokenizer: an entry point of vLLM's general plug-ins, which each of its processes loads.

vLLM hands its tokenizer to transformers' processor among the words of from_pretrained, which copies these words whole, several
times on the way to the tokenizer and the configs that it loads itself. A tokenizer of 152,000 tokens takes about a second each,
in each process and for each set of words: a third of vLLM's start on two cores (benchmarks/server_start.py). Here it stays one
object while a processor is loaded, and the processor has it, as without.

Holds for transformers 5.5 (processing_utils.py, ProcessorMixin.from_pretrained) and vLLM 0.26 and 0.27
(transformers_utils/processor.py, get_processor).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def one(thing: Any) -> Iterator[None]:
    """A copy of it is itself meanwhile, whichever of several threads is done first."""
    thing.__deepcopy__ = lambda _: thing
    try:
        yield
    finally:
        vars(thing).pop("__deepcopy__", None)


def register() -> None:
    """Called by vLLM in each process; more than once changes nothing."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    stock = ProcessorMixin.from_pretrained.__func__  # type: ignore[attr-defined]
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def from_pretrained(cls: type, *args: Any, **words: Any) -> Any:
        given = words.get("tokenizer")
        with one(given) if isinstance(given, PreTrainedTokenizerBase) else nullcontext():
            return stock(cls, *args, **words)

    ProcessorMixin.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment,method-assign]
