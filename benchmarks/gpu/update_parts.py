"""Where the actor's update spends its time: one micro-batch of chain.py's rows by verl's own forward, without Ray and FSDP.

    python benchmarks/gpu/update_parts.py MODEL [rows=24] [length=850] [repeats=3]

Seconds of the vision tower, of log-probabilities (forward, no gradient) and of forward and backward, as verl computes them
(fused kernels, gradient checkpointing, frozen tower), with the tower's windows one by one, as transformers has them without
flash-attn, and in one call by launch/plugins/vision_tower.py, which runs a frozen tower under no_grad, too; how far apart the
two are; and the share of the time in which kernels ran. Then the same with the windows in one call and without cuDNN's
attention, which vLLM turns off in each process that imports it (vllm/platforms/cuda.py), verl's actor too. Weights are
bfloat16, as FSDP has them while it computes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "launch" / "plugins"))
SIDE = 32
"""Patches to a side of a picture of 448 pixels; four of them are a visual token."""
TEXT = 100_000
"""Ids below it are plain tokens."""


def batch(model: Any, rows: int, length: int) -> dict[str, Any]:
    """Rows of one picture and text, the shortest a tenth shorter than the longest, padded on the right."""
    import torch

    config, made = model.config, torch.Generator().manual_seed(0)
    visual = SIDE * SIDE // 4
    ids = torch.randint(TEXT, (rows, length), generator=made)
    ids[:, 1 : visual + 1] = config.image_token_id
    ids[:, 0], ids[:, visual + 1] = config.vision_start_token_id, config.vision_end_token_id
    mask = torch.arange(length)[None] < length - torch.arange(rows)[:, None] * (length // 10) // rows
    size = config.vision_config.patch_size**2 * 3 * config.vision_config.temporal_patch_size
    grid = torch.tensor([[1, SIDE, SIDE]] * rows)
    kinds = (ids == config.image_token_id).int()
    places, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid, attention_mask=mask.int())
    places = torch.cat([(mask.cumsum(-1) - 1).clamp(min=0)[None], places])  # verl's four: the text's own first
    made_pixels = torch.randn(rows * SIDE * SIDE, size, generator=made)
    named = {"input_ids": ids, "attention_mask": mask.int(), "position_ids": places, "image_grid_thw": grid}
    return {name: value.to(model.device) for name, value in named.items()} | {
        "pixel_values": made_pixels.to(model.device, model.dtype)
    }


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of one, without the first; the share of them in which the GPU computed."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    start = time.monotonic()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    seconds = (time.monotonic() - start) / repeats
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return seconds, sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / seconds


def main(argv: list[str]) -> None:
    if not argv:
        raise SystemExit(__doc__)
    import torch
    import vision_tower
    from transformers import Qwen2_5_VLForConditionalGeneration
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl_freeze_vision import freeze_vision

    words = dict(word.split("=", 1) for word in argv[1:])
    rows, length, repeats = (int(words.get(name, default)) for name, default in
                             (("rows", 24), ("length", 850), ("repeats", 3)))  # fmt: skip
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        argv[0], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to("cuda")
    apply_monkey_patch(model, use_remove_padding=False, use_fused_kernels=True, fused_kernels_backend="torch")
    freeze_vision(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    given = batch(model, rows, length)
    count = int(given["attention_mask"].sum())
    tower, grid, pixels = model.model.visual, given["image_grid_thw"], given["pixel_values"]
    kind = type(tower)
    plug_in, stock = kind.forward, kind.forward.__wrapped__

    def one_call() -> None:
        kind.forward = plug_in
        vision_tower.use_attention(tower)

    def one_by_one() -> None:
        kind.forward = stock
        for block in tower.blocks:
            block.attn.config = tower.config

    def features() -> Any:
        with torch.no_grad():
            return tower(pixels, grid_thw=grid).pooler_output

    def log_probs() -> Any:
        with torch.no_grad():
            return model(**given, temperature=1.0, return_dict=True, use_cache=False).log_probs

    def update() -> None:
        loss = model(**given, temperature=1.0, return_dict=True, use_cache=False).log_probs.float().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    def tell(way: str, *parts: tuple[str, Callable[[], Any]]) -> None:
        for name, work in parts:
            seconds, busy = timed(work, repeats)
            rate = f"{count / seconds:,.0f} tokens/s"
            print(f"{way}, {name}: {seconds:.3f} s, {rate}, GPU busy {busy:.2f}", flush=True)

    tried = (("log-probabilities", log_probs), ("forward, backward", update))
    answers = []
    for way, choose in (("windows one by one", one_by_one), ("windows in one call", one_call)):
        choose()
        answers.append((features().float(), log_probs().float()))
        tell(way, ("vision tower", features), *tried)
    (before, first), (after, found) = answers
    torch.backends.cuda.enable_cudnn_sdp(False)
    other = log_probs().float()
    tell("without cuDNN's attention", *tried)
    kept = given["attention_mask"].bool()
    spread = f"{(before - after).norm() / before.norm():.4f} of their norm"
    by_window, by_kernel = (f"{(found - one)[kept].abs().mean():.4f} on average" for one in (first, other))
    print(f"apart: features {spread}, log-probabilities {by_window}; without cuDNN's attention {by_kernel}")
    print(f"at most {torch.cuda.max_memory_allocated() / 1e9:.0f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
