"""The reference model stays on its GPU where it is told to: VERL_USE_EXTERNAL_MODULES=…,verl_reference.

`actor_rollout_ref.ref.fsdp_config.param_offload: false` is verl's key for that, and its default; with FSDP2 verl 0.9.1 moves
the model to the host's pinned memory all the same (workers/engine/fsdp/transformer_impl.py: `offload_policy or forward_only`).
For 3B on an H200 that takes 70 of the 80 s in which policy and reference are loaded (benchmarks/gpu/load_parts.py), and as much
of the host's memory as the weights have twice. Here the key says what happens.
"""

from __future__ import annotations

import copy
from typing import Any

from after_import import after_import

MODULE = "verl.workers.engine.fsdp.transformer_impl"


def heed_the_key(engines: Any) -> None:
    """Has verl's FSDP engine build a model that is only read as it builds one that is trained, unless it is to be offloaded."""
    stock = engines.FSDPEngine._build_fsdp_module

    def build(self: Any, module: Any) -> Any:
        config = self.engine_config
        if not config.forward_only or config.param_offload or config.offload_policy:
            return stock(self, module)
        self.engine_config = copy.copy(config)
        self.engine_config.__dict__["forward_only"] = False  # verl's configs can't be assigned to
        try:
            return stock(self, module)
        finally:
            self.engine_config = config

    engines.FSDPEngine._build_fsdp_module = build


after_import(MODULE, heed_the_key)
