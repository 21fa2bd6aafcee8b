"""Make the tiny Qwen2.5-VL with random weights: `python -m synergy.lab.model OUT [--seed N]` (needs torch and transformers).

Architecture, file names and tensor names are those of the published Qwen2.5-VL checkpoints; 1.1 million parameters. The
tokenizer is a byte-level BPE with Qwen's special tokens, its merges learned on the lab's own texts, so that a word is one
token and a digit is always one token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from synergy.data.prompt import query
from synergy.lab import INSTRUCTION
from synergy.lab.digits import questions
from synergy.lab.practice import drills

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Qwen2's own pre-tokenizer: words with the space before them, every digit alone.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Renders what Qwen2.5-VL's renders: a default system turn, image and video marks in place, plain text elsewhere.
CHAT = (
    "{%- macro turn(role) -%}<|im_start|>{{ role }}{{ '\\n' }}{%- endmacro -%}"
    "{%- for message in messages -%}"
    "{%- if loop.first and message['role'] != 'system' -%}"
    "{{ turn('system') }}You are a helpful assistant.<|im_end|>{{ '\\n' }}"
    "{%- endif -%}"
    "{{ turn(message['role']) }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "<|im_end|>{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ turn('assistant') }}{%- endif -%}"
)
VOCABULARY = 480  # what the merges come to, rounded up
TEXTS = 3000  # records whose prompts and responses the merges are learned on


def tokenizer_files(out: Path, seed: int) -> dict[str, int]:
    """Write the files of the tokenizer and the chat template; return the special tokens' ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Split(Regex(SPLIT), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    for record in questions("train", TEXTS, seed):
        texts += [query(record.question, record.choices, INSTRUCTION), record.trace]
    for record, _, response in drills(TEXTS // 3, seed):
        texts += [query(record.question, record.choices), response]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    added = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, i in ids.items()
    }
    settings = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:], "bos_token": None, "chat_template": CHAT,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 1024, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    dump(out / "tokenizer_config.json", settings)
    dump(out / "chat_template.json", {"chat_template": CHAT})
    return ids


def settings(ids: dict[str, int]) -> dict[str, Any]:
    """config.json in the published, flat layout.

    rope_theta and mrope_section are our own: Qwen2.5-VL gives an image's columns the lowest rotary frequencies, and with
    16 of them these can't tell five neighbouring columns apart.
    """
    vision = {
        "depth": 2, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "num_heads": 2,
        "in_chans": 3, "in_channels": 3, "out_hidden_size": 128, "patch_size": 14, "spatial_merge_size": 2,
        "spatial_patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        "temporal_patch_size": 2, "model_type": "qwen2_5_vl",
    }  # fmt: skip
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"], "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"], "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"], "hidden_act": "silu",
        "hidden_size": 128, "initializer_range": 0.04, "intermediate_size": 384, "max_position_embeddings": 1024,
        "max_window_layers": 4, "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 100.0, "sliding_window": 1024, "tie_word_embeddings": True,
        "torch_dtype": "float32", "use_cache": True, "use_sliding_window": False, "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 14]}, "vocab_size": VOCABULARY,
    }  # fmt: skip


def sidecars(out: Path, ids: dict[str, int]) -> None:
    """Write config.json, generation_config.json and preprocessor_config.json."""
    dump(out / "config.json", settings(ids))
    stop = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    dump(
        out / "generation_config.json",
        {
            "bos_token_id": stop[1], "pad_token_id": stop[1], "eos_token_id": stop, "do_sample": True,
            "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        },
    )  # fmt: skip
    dump(
        out / "preprocessor_config.json",
        {
            "min_pixels": 3136, "max_pixels": 100352, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        },
    )  # fmt: skip


def weights(out: Path, seed: int) -> int:
    """Write model.safetensors (float32, published names) with random weights; return the number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(out))
    names = {"model.visual.": "visual.", "model.language_model.": "model."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied to the embedding, as in the published 3B
        prefix = next(p for p in names if name.startswith(p))
        tensors[names[prefix] + name.removeprefix(prefix)] = tensor.float().contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def dump(file: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sidecars(args.out, tokenizer_files(args.out, args.seed))
    print(f"{weights(args.out, args.seed)} parameters in {args.out}")


if __name__ == "__main__":
    main()
