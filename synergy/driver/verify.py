"""Verification of checkpoints, in one place: before a stage's product is published, and before a model is handed to a stage.

What is not looked at here is not known to be right: a loader fills a tensor that it doesn't find with random numbers, and gives
a missing tokenizer one token, each with a warning at most. A finished stage is reused by its content (``plan``), which was
verified when it was published.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synergy.driver import checkpoint, scan
from synergy.driver.checkpoint import Tensor
from synergy.errors import UserError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER = "tokenizer.json"
SPECIAL = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", checkpoint.INDEX)
ABOUT_THE_BASE = ("README.md", "MANIFEST.json", "levels.json")
"""Files that tell of the base model itself and would be wrong beside other weights."""


def model(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that is whole: index, headers and files agree, every value is finite, there is a head, and a
    tokenizer that the embedding has room for. Raises UserError that names the file and the ways out."""
    tensors = structure(folder)
    finite(tensors)
    return tensors


def structure(folder: Path) -> dict[str, Tensor]:
    """``model`` without reading the values: milliseconds."""
    tensors = checkpoint.read(folder)
    if HEAD not in tensors and EMBEDDING in tensors and not checkpoint.tied(folder):
        raise UserError(
            f"{folder}: no tensor {HEAD}, though {folder / 'config.json'} does not tie it to the embedding "
            f"(tie_word_embeddings): a loader would make it up; mend config.json, or {checkpoint.AGAIN}"
        )
    _tokenizer(folder, tensors.get(EMBEDDING))
    return tensors


def finite(tensors: dict[str, Tensor]) -> None:
    """Raises UserError for the first tensor that holds NaN or infinity."""
    files = sorted({tensor.file for tensor in tensors.values()})
    for file, found in zip(files, scan.read(files), strict=True):
        if found.broken is not None:
            raise UserError(
                f"{file}: {found.broken} holds NaN or infinity; if a stage made it, lower its learning rate and see its "
                f"log, else {checkpoint.AGAIN}"
            )


def tokens(folder: Path) -> dict[str, int]:
    """Token -> id, those added to the vocabulary included. Raises UserError for a file that tells none."""
    file = folder / TOKENIZER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        listed: dict[str, int] | list[Any] = found["model"]["vocab"]
        plain = listed if isinstance(listed, dict) else {str(entry[0]): i for i, entry in enumerate(listed)}
        added = {str(entry["content"]): int(entry["id"]) for entry in found.get("added_tokens") or []}
        return {**plain, **added}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        told = "is missing" if not file.exists() else f"is no tokenizer ({type(error).__name__}: {error})"
        raise UserError(
            f"{file} {told}: transformers would quietly load a tokenizer of one token; put back that of the model"
        ) from error


def _tokenizer(folder: Path, embedding: Tensor | None) -> None:
    """The tokenizer and the ids in config.json fit into the embedding."""
    known = tokens(folder)
    if len(known) < 2:
        raise UserError(f"{folder / TOKENIZER} holds {len(known)} tokens; put back that of the model")
    if embedding is None:
        return
    rows, largest = embedding.shape[0], max(known.values())
    if largest >= rows:
        raise UserError(
            f"{folder / TOKENIZER}: its largest id is {largest}, and {EMBEDDING} of {embedding.file.name} has {rows} rows: the "
            "tokenizer of another model? Put back that of this one, or resize the embedding"
        )
    config, ids = checkpoint.config(folder), set(known.values())
    for name in SPECIAL:
        if (number := config.get(name)) is not None and number not in ids:
            raise UserError(
                f"{folder / TOKENIZER} has no token of id {number}, {name} of config.json: the tokenizer of another model? Put "
                "back that of this one"
            )


def same_tokens(product: Path, base: Path) -> None:
    """A stage's own tokenizer, where it saved one, is the base's: what is handed on is the base's, and a token that the
    framework added would be lost. Raises UserError."""
    if not (product / TOKENIZER).exists():
        return
    made, wanted = tokens(product), tokens(base)
    if odd := sorted(token for token in made.keys() | wanted.keys() if made.get(token) != wanted.get(token)):
        raise UserError(
            f"{product / TOKENIZER}: {len(odd)} tokens are not the base model's ({base / TOKENIZER}), the first {odd[0]!r}; "
            "train without adding tokens, or begin from a base model that has them"
        )


def sidecars(folder: Path) -> list[Path]:
    """Config, tokenizer, processor, chat template, generation config: all that is neither weights nor about the base alone."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.endswith(WEIGHTS) and file.name not in ABOUT_THE_BASE
    ]


def same_sidecars(folder: Path, base: Path) -> None:
    """Raises UserError for the first file about tokens, images or chat that is not the base's, byte for byte."""
    for file in sidecars(base):
        other = folder / file.name
        if not other.exists() or other.read_bytes() != file.read_bytes():
            told = "is not that of the base model" if other.exists() else "is missing"
            raise UserError(f"{other} {told} ({file}); put that one in its place")
