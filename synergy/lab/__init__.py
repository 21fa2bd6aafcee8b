"""The tiny scale: a Qwen2.5-VL of a million parameters and questions over real handwritten digits.

`BASE` is the shipped base model; `python -m synergy.lab.build OUT` rebuilds it.
"""

from pathlib import Path

BASE: Path = Path(__file__).parent / "base"
INSTRUCTION = "Please reason step by step within <think> </think> tags, and put your final answer within \\boxed{}."
