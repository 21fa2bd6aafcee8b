"""gloo meets on the network by which Ray reaches this node, from the import of this module on.

By itself it listens on the address that the host's own name stands for (torch 2.13): 127.0.1.1 where Debian's installer wrote
/etc/hosts, and maybe another network than Ray's on a host with several. Ranks on other hosts then wait until their time is
over. On GPUs verl and FSDP2 keep a gloo group beside NCCL's, too. What the node's environment says of it stays.

verl's processes import it by VERL_USE_EXTERNAL_MODULES=…,gloo_interface; LLaMA-Factory's inherit it from `ray_nodes`.
"""

from __future__ import annotations

import os

import psutil
import ray


def interface(address: str) -> str | None:
    """The one of this host that has the address; None where no one has."""
    there = psutil.net_if_addrs().items()
    return next((name for name, held in there if any(one.address == address for one in held)), None)


if found := interface(ray.util.get_node_ip_address()):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
