"""launch/plugins/vllm_processor.py: vLLM finds it, and a processor is loaded without a copy of the tokenizer it is given."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from synergy import lab, paths

pytestmark = pytest.mark.slow
LOAD = """
import json, sys
from transformers import AutoTokenizer, Qwen2_5_VLProcessor
from vllm.plugins import load_general_plugins

told, copies, tokenizer = {}, [], AutoTokenizer.from_pretrained(sys.argv[1])

class Counted(type(tokenizer)):
    def __deepcopy__(self, memo):
        copies.append(1)
        return self

tokenizer.__class__ = Counted
for way in ("without", "with"):
    if way == "with":
        load_general_plugins()
    copies.clear()
    made = Qwen2_5_VLProcessor.from_pretrained(sys.argv[1], tokenizer=tokenizer)
    left = "__deepcopy__" in vars(tokenizer)
    read = made(text="1 <|image_pad|> 2")["input_ids"]
    told[way] = {"copies": len(copies), "given back": made.tokenizer is tokenizer, "left": left, "read": read}
Qwen2_5_VLProcessor.from_pretrained(sys.argv[1])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(warm_python: str) -> dict[str, dict[str, object]]:
    env = {**os.environ, "PYTHONPATH": paths.pythonpath(), "HF_HUB_OFFLINE": "1"}
    argv = [warm_python, "-c", LOAD, str(lab.BASE)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return made


def test_the_tokenizer_is_given_back_uncopied_and_copied_afterwards_as_ever(
    told: dict[str, dict[str, object]],
) -> None:
    assert told["with"] == {**told["without"], "copies": 0} and told["with"]["given back"] and not told["with"]["left"]


def test_the_reason_is_still_there(told: dict[str, dict[str, object]]) -> None:
    assert told["without"]["copies"], "transformers copies it no more: the plug-in can go"
