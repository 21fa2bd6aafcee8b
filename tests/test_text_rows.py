"""launch/plugins/verl_text_rows.py: verl's forward pass of a question without an image."""

from __future__ import annotations

import pytest
from conftest import with_plugins

from synergy import lab

pytestmark = pytest.mark.slow

CODE = """
import sys
import torch
if sys.argv[2] == "with": import verl_text_rows
from transformers import Qwen2_5_VLForConditionalGeneration
from verl.models.transformers.monkey_patch import apply_monkey_patch
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype="float32", attn_implementation="sdpa")
given = {"input_ids": torch.arange(100, 107)[None], "position_ids": torch.arange(7).expand(4, 1, 7)}
with torch.no_grad():
    stock = model(**given).logits
    apply_monkey_patch(model, use_remove_padding=False)
    print(torch.equal(model(**given).logits, stock))
"""


def test_it_gives_what_transformers_gives(warm_python: str) -> None:
    done = with_plugins(warm_python, CODE, str(lab.BASE), "with")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "True"


def test_verl_alone_fails_still(warm_python: str) -> None:
    done = with_plugins(warm_python, CODE, str(lab.BASE), "without")
    assert "has no attribute 'mean'" in done.stderr, "verl_text_rows can go"
