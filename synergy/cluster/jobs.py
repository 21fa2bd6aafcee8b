"""Jobs of a Ray cluster, by Ray's Job Submission SDK: reach the cluster, send, follow, ask, stop.

The address is the dashboard's, or $RAY_API_SERVER_ADDRESS as for Ray's own ``ray job``. Ray reads the token of a cluster with
token authentication from the environment (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from synergy.cluster.needs import Node
from synergy.errors import UserError

ADDRESS = "RAY_API_SERVER_ADDRESS"
OTHERS = ("RAY_ADDRESS", ADDRESS)
"""Ray lets both win over an address that it is given."""
CONNECT_SECONDS = 10.0
AGENT_SECONDS = 60.0
"""How long a cluster that has just started may have no agent to take a job."""
LOST_SECONDS = 60.0
"""How long a cluster may be away while a log is followed."""
OK, FAILED, STOPPED = 0, 1, 130
"""Exit codes for how a job ended; a driver that ended by itself has its own."""


@dataclass(frozen=True)
class Client:
    """A cluster that was reached. sdk: Ray's own client; ray: the cluster's version of Ray."""

    address: str
    sdk: Any
    ray: str


def connect(address: str | None) -> Client:
    """Raises UserError for an address that is none or where no cluster answers, and for a wrong token."""
    given = address or os.environ.get(ADDRESS)
    if not given:
        raise UserError(
            f"no cluster is named: give cluster.address=http://HEAD:8265 (synergy job: --address), its dashboard's address, "
            f"or export {ADDRESS}"
        )
    _require_answer(given)
    try:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    except ImportError as error:
        raise UserError(f"this Python has no Ray ({error}): install ray[default] in the cluster's version") from error
    with _only(), _telling(given):
        sdk = JobSubmissionClient(given)
        return Client(given, sdk, str(sdk._server_ray_version))


def _require_answer(address: str) -> None:
    """A port that nobody answers on is told within seconds; Ray's client would wait for minutes."""
    try:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http:// or https:// address")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}): give the address of its dashboard, port 8265 unless set "
            "otherwise, and see that it can be reached from here (`ray status` on the head tells whether it runs)"
        ) from error


@contextmanager
def _only() -> Iterator[None]:
    """Without the variables that win over an address."""
    taken = {name: os.environ.pop(name) for name in OTHERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _telling(address: str) -> Iterator[None]:
    """What Ray's client raises, as UserError."""
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address} refuses the token ({str(error).splitlines()[0]}): export RAY_AUTH_MODE=token "
            "and its token in RAY_AUTH_TOKEN, or the file with it in RAY_AUTH_TOKEN_PATH; nothing was sent"
        ) from error
    except (OSError, ClientError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors
        raise UserError(f"the Ray cluster at {address}: {str(error).strip()[:600]}") from error


def nodes(client: Client) -> list[Node]:
    """The cluster's living nodes."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    with _only():
        os.environ[ADDRESS] = client.address
        try:
            with _telling(client.address):
                return Node.living(list_nodes(limit=10_000, detail=True))
        except RayStateApiException as error:
            raise UserError(f"the Ray cluster at {client.address} does not tell its nodes: {error}") from error
        finally:
            del os.environ[ADDRESS]


def send(client: Client, entrypoint: str, name: str, env: dict[str, str], told: dict[str, str]) -> str:
    """Queues a job under the name; its id. told: what ``ray job list`` shows of it."""
    end = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            with _telling(client.address):
                runtime: dict[str, Any] = {"env_vars": env} if env else {}
                return str(
                    client.sdk.submit_job(entrypoint=entrypoint, submission_id=name, runtime_env=runtime, metadata=told)
                )
        except UserError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(1.0)


def info(client: Client, name: str) -> Any:
    """Ray's JobDetails. Raises UserError for a job that the cluster does not know."""
    try:
        with _telling(client.address):
            return client.sdk.get_job_info(name)
    except UserError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise UserError(
                f"the cluster at {client.address} knows no job {name}: `synergy job list` tells which it knows. A cluster "
                "whose head was restarted has forgotten its jobs; the same `synergy submit` then continues the run"
            ) from error
        raise


def follow(client: Client, name: str, write: Callable[[str], None]) -> int:
    """Writes a job's log as it grows, to its end; exit code. A connection that is lost is made anew.

    Raises UserError where the cluster stays away, and the job may go on; and where it has forgotten the job."""
    seen, lost = [0], time.monotonic()
    while True:
        before = seen[0]
        try:
            with _telling(client.address):
                asyncio.run(_tail(client, name, seen, write))
        except UserError:
            pass  # the head may be back in a moment
        if seen[0] > before:
            lost = time.monotonic()
        try:
            found = info(client, name)
            lost = time.monotonic()
            if found.status.is_terminal():
                with _telling(client.address):
                    write(client.sdk.get_job_logs(name)[seen[0] :])
                return code(found)
        except UserError as error:
            if "knows no job" in str(error):
                raise
            if time.monotonic() - lost > LOST_SECONDS:
                raise UserError(
                    f"{error}\nThe log can't be followed any more. Once the cluster answers again: synergy job logs {name}"
                ) from error
        time.sleep(1.0)


async def _tail(client: Client, name: str, seen: list[int], write: Callable[[str], None]) -> None:
    skip = seen[0]  # a log is told from its beginning each time
    async for text in client.sdk.tail_job_logs(name):
        new = text[skip:]
        skip = max(0, skip - len(text))
        seen[0] += len(new)
        write(new)


def code(found: Any) -> int:
    """Exit code of a job that has ended: its driver's, where that ended by itself."""
    if found.status == "SUCCEEDED":
        return OK
    if found.status == "STOPPED":
        return STOPPED
    return int(found.driver_exit_code) if getattr(found, "driver_exit_code", None) in (1, 2, 130) else FAILED


def stop(client: Client, name: str, seconds: float) -> str:
    """Has a job end, and waits for that; the state it is in then."""
    info(client, name)
    with _telling(client.address):
        client.sdk.stop_job(name)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = info(client, name)
        if found.status.is_terminal():
            break
        time.sleep(0.5)
    return str(found.status.value)


def taken(client: Client, name: str) -> str:
    """The log of a job that has ended, which the cluster then forgets."""
    with _telling(client.address):
        log = str(client.sdk.get_job_logs(name))
        client.sdk.delete_job(name)
    return log


def every(client: Client) -> list[Any]:
    """Jobs that were sent to the cluster, oldest first."""
    with _telling(client.address):
        found = client.sdk.list_jobs()
    return sorted((job for job in found if job.submission_id), key=lambda job: job.start_time or 0)
