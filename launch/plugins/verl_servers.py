"""What verl's processes serve is for themselves: VERL_USE_EXTERNAL_MODULES=…,verl_servers.

* vLLM's server gets a random key, by vLLM's own VLLM_API_KEY. verl 0.9.1 asks its servers through Ray and never over HTTP,
  so nobody needs to know it. A reward model of verl's (reward.reward_model) is asked over HTTP and without a key: for that
  one, set VLLM_API_KEY to nothing in rl.env.
* torch.distributed's store listens on its own address alone (`loopback_store`). That of vLLM is VLLM_HOST_IP: loopback, where
  Ray was told that it is alone on one host.
"""

from __future__ import annotations

import os
import secrets

import loopback_store  # noqa: F401 - changes torch

os.environ.setdefault("VLLM_API_KEY", secrets.token_urlsafe(32))
if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0":
    os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
