"""Checks before training: what a framework would drop, truncate or die of after hours is told here, in seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reward_fns import gold
from synergy.data import untrusted
from synergy.data.prompt import query
from synergy.data.records import Record
from synergy.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEMPLATE_TOKENS = 32
"""Room for the chat template around query and response (system prompt, roles, end of turn)."""


@dataclass(frozen=True)
class ImageGrid:
    """How the processor turns pixels into tokens: sides in multiples of ``cell`` pixels, area within the limits."""

    cell: int
    min_pixels: int
    max_pixels: int

    def tokens(self, width: int, height: int) -> int:
        """Visual tokens of an image (Qwen2-VL's smart_resize: transformers, image_processing_qwen2_vl.py)."""
        area = max(self.cell, round(width / self.cell) * self.cell) * max(
            self.cell, round(height / self.cell) * self.cell
        )
        if area > self.max_pixels:
            area = self.max_pixels
        elif area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            sides = (math.ceil(side * scale / self.cell) * self.cell for side in (width, height))
            area = math.prod(sides)
        return area // self.cell**2


def tokenizer(model: Path) -> Tokenizer:
    """The model's tokenizer without torch or transformers. Raises UserError where there is no tokenizer.json."""
    from tokenizers import Tokenizer

    file = model / "tokenizer.json"
    if not file.exists():
        raise UserError(
            f"{file} is missing: transformers would quietly load a tokenizer of one token; restore the file"
        )
    return Tokenizer.from_file(str(file))


def grid(model: Path) -> ImageGrid:
    """Image limits from the model's processor files, as transformers 4 or 5 wrote them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = model / name
        if file.exists():
            found = json.loads(file.read_text())
            found = found.get("image_processor", found)
            size = found.get("size") or {}
            least = size.get("shortest_edge") or found.get("min_pixels") or 56 * 56
            most = size.get("longest_edge") or found.get("max_pixels") or 28 * 28 * 1280
            return ImageGrid(int(found.get("patch_size", 14)) * int(found.get("merge_size", 2)), int(least), int(most))
    raise UserError(f"{model} has no preprocessor_config.json; is this a vision-language model?")


def answers(records: Sequence[Record], where: str) -> None:
    """Raises UserError when a gold answer can't be judged: such a question would count as never solved."""
    problems = ((r.id, gold.problem(r.answer, r.choices, r.answer_type)) for r in records)
    found = [(name, problem) for name, problem in problems if problem]
    if found:
        name, problem = found[0]
        more = f" (and {len(found) - 1} more: {', '.join(repr(other) for other, _ in found[1:6])})" if found[1:] else ""
        raise UserError(f"{where}: record {name!r} {problem}{more}; mend these records or leave them out")


def images(records: Sequence[Record], media: Path, cells: ImageGrid, whole: bool = True) -> dict[str, int]:
    """Opens every image, fully unless ``whole`` is false; image path -> visual tokens. Raises UserError for the first that
    fails."""
    from PIL import Image

    counts: dict[str, int] = {}
    for record in records:
        for name in record.images:
            if name in counts:
                continue
            try:
                with Image.open(untrusted.inside(media, name)) as picture:
                    if whole:
                        picture.load()
                    width, height = picture.size
            except Exception as error:  # whatever a damaged picture makes the decoder raise
                raise UserError(f"record {record.id!r}: image {media / name} can't be opened ({error})") from error
            if min(width, height) < cells.cell:
                raise UserError(
                    f"record {record.id!r}: image {media / name} is {width}x{height}; each side needs {cells.cell}"
                )
            counts[name] = cells.tokens(width, height)
    return counts


def lengths(
    rows: Sequence[tuple[Record, str, str | None]], visual: dict[str, int], words: Tokenizer, cutoff_len: int | None
) -> list[int]:
    """Tokens of each (record, response, instruction) row. Raises UserError for rows over LLaMA-Factory's cutoff_len, which
    it would truncate without a word: a long trace loses its answer and its end."""
    queries = words.encode_batch_fast([query(r.question, r.choices, instruction) for r, _, instruction in rows])
    responses = words.encode_batch_fast([response for _, response, _ in rows])
    totals = [
        len(q.ids) + len(a.ids) + sum(visual[name] for name in record.images) + TEMPLATE_TOKENS
        for (record, _, _), q, a in zip(rows, queries, responses, strict=True)
    ]
    long = [(record.id, n) for (record, _, _), n in zip(rows, totals, strict=True) if cutoff_len and n > cutoff_len]
    if long:
        worst = max(n for _, n in long)
        raise UserError(
            f"{len(long)} of {len(rows)} training rows are longer than sft.config.cutoff_len={cutoff_len} tokens "
            f"(first: id {long[0][0]!r} with {long[0][1]}, longest {worst}): LLaMA-Factory would cut them silently; "
            f"set sft.config.cutoff_len={worst} or more, or leave these records out"
        )
    return totals


def row_lengths(file: Path, visual: Mapping[str, int], words: Tokenizer) -> list[int]:
    """Tokens of each row of a file in LLaMA-Factory's format, its images included."""
    rows = json.loads(file.read_text())
    texts = words.encode_batch_fast(["".join(turn["content"] for turn in row["messages"]) for row in rows])
    pictures = [sum(visual[name] for name in row["images"]) for row in rows]
    return [len(text.ids) + seen + TEMPLATE_TOKENS for text, seen in zip(texts, pictures, strict=True)]


def prompts(
    turns: Sequence[tuple[Record, str]], visual: dict[str, int], words: Tokenizer, instruction: str, limit: int
) -> None:
    """Raises UserError when a prompt with its trace prefix is over verl's max_prompt_length: such a rollout fails without
    ending the run (verl 0.9.1 logs it and pads the group)."""
    queries = words.encode_batch_fast([query(r.question, r.choices, instruction) for r, _ in turns])
    prefixes = words.encode_batch_fast([prefix for _, prefix in turns])
    for (record, _), q, p in zip(turns, queries, prefixes, strict=True):
        total = len(q.ids) + len(p.ids) + sum(visual[name] for name in record.images) + TEMPLATE_TOKENS
        if total > limit:
            raise UserError(
                f"record {record.id!r}: its prompt and trace prefix make {total} tokens, more than "
                f"rl.verl.data.max_prompt_length={limit}; raise it (and rollout.max_model_len), or leave the record out"
            )


def questions(
    asked: Sequence[Record],
    visual: dict[str, int],
    words: Tokenizer,
    instruction: str | None,
    limit: int,
    response: int,
) -> None:
    """Raises UserError when a prompt and the longest response, in tokens, are more than vLLM's max_model_len: the engine would
    cut the response short without a word, or end there if it left no room for any."""
    texts = words.encode_batch_fast([query(r.question, r.choices, instruction) for r in asked])
    for record, text in zip(asked, texts, strict=True):
        total = len(text.ids) + sum(visual[name] for name in record.images) + TEMPLATE_TOKENS
        if total + response > limit:
            raise UserError(
                f"record {record.id!r}: its prompt makes {total} tokens and leaves no room for a response of {response} within "
                f"sample.engine.max_model_len={limit}; raise that, or leave the record out"
            )
