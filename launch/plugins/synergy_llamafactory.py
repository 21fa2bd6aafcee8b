"""``llamafactory-cli train`` with five additions: for recipes in rounds, for GPUs, for several processes.

Usage: this file, ``train``, the YAML.

1. Templates whose responses have no end of turn. Why: the progressive recipe trains on the beginning of a trace.
   LLaMA-Factory closes every response with the template's end of turn (``<|im_end|>``) and trains on it, which would
   teach the model to stop in mid-thought; no option leaves it out. How: each template is registered once more as
   ``<name>_open_ended``, with the bare content as the assistant's slot.
2. A part of a learning-rate schedule, where the environment names one (see ``schedule_part``).
3. A frozen vision tower without work in vain, and its windows in one call (see ``vision_tower``).
4. In a fork (see ``warm_start``) torch's attention as in a process of its own. Why: a fork has vLLM imported, which
   LLaMA-Factory never does, and vLLM turns cuDNN's kernels off for its whole process (vllm/platforms/cuda.py); they
   are what torch prefers on an H100 or H200. No variable of the environment overrules that.
5. Several processes on CPUs go on from a checkpoint. Why: accelerate calls the device of each ``cpu:0``
   (state.py, PartialState.set_device), and torch.load knows ``cpu`` alone, so that the optimizer is never found.

On several GPUs LLaMA-Factory's launcher starts its own file anew under torchrun, and the additions would be lost; here
that file is this one. As with the launcher's, the word ``train`` tells the start by hand from that by torchrun.
Holds for: llamafactory 0.9.5 (data/template.py: TEMPLATES, Template.format_assistant; launcher.py: launch;
train/sft/trainer.py: CustomSeq2SeqTrainer.create_scheduler), vllm 0.26.0, accelerate 1.11, torch 2.13.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import schedule_part
import vision_tower  # noqa: F401 - changes transformers, as soon as that imports the model

SUFFIX = "_open_ended"


def register() -> None:
    """Adds the open-ended twin of every registered template."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import TEMPLATES

    for name, template in list(TEMPLATES.items()):
        if not name.endswith(SUFFIX):
            bare = StringFormatter(slots=["{{content}}"])
            TEMPLATES[name + SUFFIX] = dataclasses.replace(template, format_assistant=bare)


def install(part: schedule_part.Part) -> None:
    """Has the SFT trainer run a part of its schedule."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    stock = CustomSeq2SeqTrainer.create_scheduler

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            scheduler = stock(self, part.whole(num_training_steps), optimizer)
            self.lr_scheduler = schedule_part.begin(scheduler, part.start(num_training_steps))
        return self.lr_scheduler

    CustomSeq2SeqTrainer.create_scheduler = create_scheduler


def undo_vllm() -> None:
    """Has torch choose among all its kernels for attention, where vLLM was imported."""
    if "vllm" in sys.modules:
        import torch

        torch.backends.cuda.enable_cudnn_sdp(True)


def number_the_cpu() -> None:
    """Has torch load to ``cpu:0`` what it would load to ``cpu``."""
    import torch

    torch.serialization.register_package(
        30, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )


def main() -> None:
    undo_vllm()
    register()
    if part := schedule_part.read():
        install(part)
    if sys.argv[1:2] == ["train"]:
        from llamafactory import launcher

        launcher.__file__ = __file__
        launcher.launch()
    else:
        from llamafactory.train.tuner import run_exp

        number_the_cpu()
        run_exp()


if __name__ == "__main__":
    main()
