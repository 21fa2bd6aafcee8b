"""Hand-off: a stage's product is its tensors; every other file of a checkpoint comes from the base model.

Why: each framework re-saves tokenizer, config and generation config in its own way (LLaMA-Factory prepends an EOS at every
round, transformers renames tensors between patch versions). Names, shapes and dtypes are those of the base, always.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from synergy.driver import checkpoint, scan, verify
from synergy.driver.checkpoint import Tensor
from synergy.errors import StageFailed, UserError


def publish(product: Path, base: Path, previous: Path, out: Path) -> dict[str, int]:
    """Writes the checkpoint ``out`` from the tensors of ``product`` and the other files of ``base``.

    previous: the stage's input model; weights equal to its own mean that nothing was trained. Files that are already right
    are hard-linked. Returns the number of tensors and of changed tensors. Raises StageFailed for anything not handed on.
    """
    wanted, made = checkpoint.read(base), checkpoint.read(product)
    if checkpoint.tied(base):
        wanted.pop(verify.HEAD, None)
        _same_head(made.pop(verify.HEAD, None), made)
    _same_model(wanted, made, product)
    verify.same_tokens(product, base)
    out.mkdir(parents=True)
    by_file: dict[Path, list[Tensor]] = {}
    for tensor in made.values():
        by_file.setdefault(tensor.file, []).append(tensor)

    def hand_on(file: Path) -> None:
        tensors, target = by_file[file], out / (checkpoint.SINGLE if len(by_file) == 1 else file.name)
        dtypes = {t.name: wanted[t.name].dtype for t in tensors}
        stored = {name for name in checkpoint.header(file)[0] if name != "__metadata__"}
        if stored == {t.name for t in tensors} and all(t.dtype == dtypes[t.name] for t in tensors):
            link(file, target)
        else:
            _rewrite(tensors, dtypes, target)

    with ThreadPoolExecutor(max_workers=scan.THREADS) as pool:
        list(pool.map(hand_on, by_file))
    if len(by_file) > 1:
        _write_index(by_file, out)
    for file in verify.sidecars(base):
        shutil.copy2(file, out / file.name)
    try:
        verify.same_sidecars(out, base)
        verify.model(out)
    except UserError as error:
        raise StageFailed(f"{product}: {error}") from error
    changed = count_changed(out, previous)
    if changed == 0:
        raise StageFailed(
            f"{product}: no weight changed; was everything frozen, the learning rate 0, or in RL each reward the same?"
        )
    return {"tensors": len(made), "changed_tensors": changed}


def _same_model(wanted: dict[str, Tensor], made: dict[str, Tensor], product: Path) -> None:
    missing, extra = sorted(set(wanted) - set(made)), sorted(set(made) - set(wanted))
    shapes = [n for n in wanted if n in made and wanted[n].shape != made[n].shape]
    if missing or extra or shapes:
        raise StageFailed(
            f"{product}: not the base model's tensors: missing {missing[:3]}, unexpected {extra[:3]}, other shape {shapes[:3]}"
        )


def _same_head(head: Tensor | None, made: dict[str, Tensor]) -> None:
    """A tied head is left out of what is published: it must be the embedding."""
    if head is not None and verify.EMBEDDING in made and not _equal(head, made[verify.EMBEDDING]):
        raise StageFailed(
            f"{head.file}: {head.name} is not the embedding, though the base model ties them: training one of them would be "
            "lost; train with tie_word_embeddings, or begin from a base model with a head of its own"
        )


def pass_through(model: Path, out: Path) -> None:
    """A stage with nothing to do hands on its input: linked, not copied."""
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file():
            link(file, out / file.name)


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    """Renames all tensors of a checkpoint from their published names; each file is replaced as a whole."""
    tensors = checkpoint.read(folder)
    if all(tensor.stored == rename(name) for name, tensor in tensors.items()):
        return
    for file in checkpoint.files(folder):
        aside = file.with_suffix(".renaming")
        inside = [tensor for tensor in tensors.values() if tensor.file == file]
        _rewrite(inside, {t.name: t.dtype for t in inside}, aside, rename)
        os.replace(aside, file)
    index = folder / checkpoint.INDEX
    if index.exists():
        found = json.loads(index.read_text())
        names = found["weight_map"].items()
        found["weight_map"] = {rename(checkpoint.published(name)): file for name, file in names}
        index.write_text(json.dumps(found, indent=2) + "\n")


def _rewrite(tensors: list[Tensor], dtypes: dict[str, str], target: Path, rename: Callable[[str], str] = str) -> None:
    """One weight file, streamed: published names through ``rename``, dtypes as given."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset, widths = 0, {"F32": 4, "BF16": 2, "F16": 2}
    for tensor in tensors:
        size = tensor.end - tensor.start
        if tensor.dtype != dtypes[tensor.name]:
            size = size // widths[tensor.dtype] * widths[dtypes[tensor.name]]
        entry = {"dtype": dtypes[tensor.name], "shape": tensor.shape, "data_offsets": [offset, offset + size]}
        entries[rename(tensor.name)], offset = entry, offset + size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in checkpoint.chunks(tensor, scan.PIECE):
                stream.write(checkpoint.cast(piece, tensor.dtype, dtypes[tensor.name]))


def _write_index(by_file: dict[Path, list[Tensor]], out: Path) -> None:
    names = {tensor.name: file.name for file, tensors in by_file.items() for tensor in tensors}
    total = sum((out / name).stat().st_size - checkpoint.header(out / name)[1] for name in set(names.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (out / checkpoint.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def count_changed(model: Path, previous: Path) -> int:
    """How many tensors differ in value between two checkpoints with equal names."""
    new, old = checkpoint.read(model), checkpoint.read(previous)
    with ThreadPoolExecutor(max_workers=scan.THREADS) as pool:
        return sum(pool.map(lambda name: name not in old or not _equal(new[name], old[name]), new))


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    pieces = (checkpoint.chunks(tensor, scan.PIECE) for tensor in (one, other))
    return all(a == b for a, b in zip(*pieces, strict=True))


def link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
