"""Qwen2.5-VL with the real architecture and vocabulary and random weights, for figures that don't depend on what is answered.

    python benchmarks/gpu/random_model.py OUT SIZE RANKS      # SIZE: 3b, 7b or tiny

RANKS: the file of Qwen's byte-pair ranks that the PyPI package dashscope 2.0.2 ships (resources/qwen.tiktoken). Published file
layout and tensor names, bfloat16. tiny, for a trial: the 3B with few and narrow layers and the lab's vocabulary (RANKS isn't
read), so that all checkpoints of a run are a few megabytes. Sizes: config.json of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct.
"""

from __future__ import annotations

import base64
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from synergy.lab.model import CHAT, SPECIAL, SPLIT, VOCABULARY, dump, tokenizer_files

SIZES: dict[str, dict[str, Any]] = {
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
           "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
    "7b": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1,
             "intermediate_size": 256, "vocab_size": VOCABULARY, "tie_word_embeddings": True},
}  # fmt: skip
TINY_TOWER = {"depth": 2, "hidden_size": 160, "intermediate_size": 428, "num_heads": 2, "fullatt_block_indexes": [1]}
SHARD_BYTES = 4 * 10**9


def merges(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The two pieces that byte-pair encoding joins last into ``token``: replayed with the ranks under its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        rank, at = min((ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank >= below:
            raise ValueError(f"{token!r} can't be made of tokens of lower rank")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def printable() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def tokenizer(out: Path, file: Path) -> dict[str, int]:
    """tokenizer.json and its settings, from the ranks; the special tokens' ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre

    ranks = {base64.b64decode(text): int(rank) for text, rank in map(str.split, file.read_text().splitlines())}
    chars = printable()

    def text(token: bytes) -> str:
        return "".join(chars[byte] for byte in token)

    joined = [
        merges(token, ranks, rank) for token, rank in sorted(ranks.items(), key=lambda pair: pair[1]) if len(token) > 1
    ]
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    made = Tokenizer(models.BPE(vocabulary, [(text(a), text(b)) for a, b in joined]))
    made.normalizer = normalizers.NFC()
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre.Sequence([pre.Split(Regex(SPLIT), "isolated"), byte_level])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.save(str(out / "tokenizer.json"))
    made.model.save(str(out))
    added = {str(made.token_to_id(token)): {"content": token, "special": True} for token in SPECIAL}
    dump(out / "tokenizer_config.json", {
        "added_tokens_decoder": added, "additional_special_tokens": SPECIAL[1:], "bos_token": None, "chat_template": CHAT,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    })  # fmt: skip
    dump(out / "chat_template.json", {"chat_template": CHAT})
    return {token: made.token_to_id(token) for token in SPECIAL}


def settings(out: Path, size: str, ids: dict[str, int]) -> None:
    """config.json, generation_config.json and preprocessor_config.json. ids: of the special tokens."""
    shape = SIZES[size]
    vision = {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
        "in_channels": 3, "out_hidden_size": shape["hidden_size"], "patch_size": 14, "spatial_merge_size": 2,
        "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
        "temporal_patch_size": 2, "model_type": "qwen2_5_vl", **(TINY_TOWER if size == "tiny" else {}),
    }  # fmt: skip
    dump(out / "config.json", {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"], "hidden_act": "silu", "initializer_range": 0.02,
        "max_position_embeddings": 128000, "max_window_layers": 70, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "sliding_window": 32768, "use_cache": True,
        "use_sliding_window": False, "torch_dtype": "bfloat16", "vision_config": vision, **shape,
    })  # fmt: skip
    stop = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    dump(out / "generation_config.json", {"pad_token_id": stop[1], "eos_token_id": stop, "do_sample": True})
    dump(out / "preprocessor_config.json", {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    })  # fmt: skip


def weights(out: Path, size: str) -> int:
    """Random weights in shards with an index; the number of parameters."""
    import torch
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = AutoConfig.from_pretrained(out)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    renamed = {"model.visual.": "visual.", "model.language_model.": "model."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        before = next((prefix for prefix in renamed if name.startswith(prefix)), "")
        tensors[renamed.get(before, "") + name.removeprefix(before)] = tensor.contiguous()
    if SIZES[size]["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    save_torch_state_dict(tensors, out, max_shard_size=SHARD_BYTES)
    return sum(tensor.numel() for tensor in tensors.values())


def main() -> None:
    out, size, ranks = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    start = time.monotonic()
    out.mkdir(parents=True)
    ids = tokenizer_files(out, seed=0) if size == "tiny" else tokenizer(out, ranks)
    settings(out, size, ids)
    count = weights(out, size)
    print(f"{count:,} parameters in {out}, {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
