"""``synergy job list|status|logs|stop [ID]``: jobs that ``synergy submit`` sent to a Ray cluster.

``logs`` follows a job that runs to its end, from the beginning of its log, and ends with its exit code; Ctrl-C leaves the job
running. ``stop`` ends the driver and all its stages; the same ``synergy submit`` continues the run later.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import Any

from synergy import cli, submit
from synergy.cluster import jobs
from synergy.errors import UserError

ACTIONS = ("list", "status", "logs", "stop")


def act(action: str, name: str | None, address: str | None) -> int:
    """Exit code. Raises UserError."""
    if "=" in (name or ""):
        raise UserError(f"{name}: job takes no key of the config; the cluster is named by --address http://HEAD:8265")
    client = jobs.connect(address)
    if action == "list":
        for job in jobs.every(client):
            print(_line(job))
        return 0
    if name is None:
        raise UserError(f"`synergy job {action}` needs the job's id; `synergy job list` tells which there are")
    if action == "logs":
        jobs.info(client, name)
        return submit.watch(client, name)
    if action == "stop":
        print(f"{name}: {jobs.stop(client, name, submit.STOP_SECONDS + 15.0)}")
        return 0
    found = jobs.info(client, name)
    print(_line(found))
    if found.metadata.get("run.dir"):
        print(f"run.dir: {found.metadata['run.dir']} (synergy status tells of its stages, where that folder is)")
    return 0


def _line(job: Any) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
    told = "" if job.status in ("RUNNING", "PENDING", "SUCCEEDED") else f"  {(job.message or '').splitlines()[0][:120]}"
    return f"{job.submission_id}  {job.status.value}  since {since}{told}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="synergy job", description=__doc__)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("id", nargs="?", help="as synergy submit printed it")
    parser.add_argument("--address", help=f"of the cluster's dashboard, http://HEAD:8265; default: ${jobs.ADDRESS}")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return cli.ended(lambda: act(arguments.action, arguments.id, arguments.address))


if __name__ == "__main__":
    sys.exit(main())
