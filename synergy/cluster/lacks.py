"""What a cluster lacks for a recipe, told before anything is queued."""

from __future__ import annotations

import json
import re
import shlex
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from synergy.cluster import jobs, probe
from synergy.cluster.needs import Need, Node
from synergy.errors import UserError

PROBE_SECONDS = 180.0


def sizes(needs: Iterable[Need], there: Sequence[Node], late: bool) -> str | None:
    """None, or what is lacking where nodes may come late. Raises UserError where they may not."""
    cpus = sum(node.cpus for node in there)
    for need in sorted(set(needs), key=lambda need: (need.nodes * need.gpus, need.memory_gb, need.cpus), reverse=True):
        fit = sum(node.holds(need) for node in there)
        if fit < need.nodes or cpus < need.all_cpus:
            have = f"{fit} of its {len(there)} nodes {'has' if fit == 1 else 'have'} that"
            if fit >= need.nodes:
                have = f"it has {cpus:g} CPUs"
            told = f"a stage needs {need}, and {f'{have}: {listed(there)}' if there else 'it has no nodes yet'}"
            if late:
                return told
            raise UserError(
                f"the cluster is too small: {told}. Lower cluster.nodes, cluster.gpus or cluster.memory_gb, add nodes, or set "
                "cluster.late=true if they join later; a node's CPUs are what its `ray start --num-cpus` told"
            )
    return None


def listed(there: Collection[Node]) -> str:
    return "; ".join(
        f"{node.name}{' [head]' if node.head else ''} {node.gpus} GPUs, {node.cpus:g} CPUs, {node.memory_gb:.0f} GB"
        for node in there
    )


def ray_version(client: jobs.Client) -> None:
    """Raises UserError unless the cluster's Ray is the one here."""
    import ray

    if client.ray != ray.__version__:
        raise UserError(
            f"the cluster at {client.address} runs Ray {client.ray}, and here is {ray.__version__}: submit from an environment "
            "with the cluster's version, or start the cluster with this one"
        )


def look(
    client: jobs.Client, interpreter: str, pythons: Collection[str], folder: str | None, words: Sequence[str] = ()
) -> list[str]:
    """Sends the probe and waits for what it tells: words to add to the driver's command line. interpreter: shell words that
    start the driver's Python; words: of its command line.

    Raises UserError for a node or interpreter that is not as here, for stages that don't fit into the GPUs there, and where no
    driver could be started at all."""
    spec = json.dumps({"pythons": sorted(pythons), "folder": folder, "words": list(words)})
    name = f"synergy-probe-{uuid.uuid4().hex[:8]}"
    jobs.send(client, f"{interpreter} -m {probe.__name__} {shlex.quote(spec)}", name, {}, {"synergy": "probe"})
    end = time.monotonic() + PROBE_SECONDS
    try:
        while not (found := jobs.info(client, name)).status.is_terminal():
            if time.monotonic() > end:
                raise UserError(
                    f"the cluster at {client.address} did not run a first small job within {PROBE_SECONDS:.0f} s"
                )
            time.sleep(0.2)
    except BaseException:
        with suppress(UserError):  # what happened is the thing to tell
            jobs.stop(client, name, 5.0)
        raise
    log = jobs.taken(client, name)
    line = re.findall(rf"^{re.escape(probe.MARK)}(.+)$", log, re.M)
    if not line:
        last = [row for row in log.splitlines() if row.strip() and "Running entrypoint" not in row][-3:]
        why = f"{found.status.value}: {' / '.join(last) or found.message}"
        raise UserError(
            f"the driver can't start on the cluster at {client.address} ({why}). cluster.python names the interpreter there, "
            "cluster.workdir the folder; both must be on the head as they are here, or be named"
        )
    told = probe.Found(**json.loads(line[-1]))
    _compare(client, told)
    return told.words


def _compare(client: jobs.Client, there: probe.Found) -> None:
    import ray

    import synergy

    here = (probe.python(), ray.__version__, synergy.__version__, probe.source())
    names = ("Python", "Ray", "Synergy", "Synergy's files (digest)")
    for name, mine, theirs in zip(names, here, (there.python, there.ray, there.synergy, there.source), strict=True):
        if mine.rpartition(".")[0] != theirs.rpartition(".")[0] if name == "Python" else mine != theirs:
            raise UserError(
                f"{name} here is {mine}, and {theirs} in the driver's environment on the cluster at {client.address}: bring "
                "both to the same, or name another interpreter there by cluster.python"
            )
    if there.problems:
        raise UserError(f"the cluster at {client.address} is not ready: " + "; ".join(there.problems))
