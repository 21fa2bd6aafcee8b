"""Several hosts on one machine, by Linux namespaces: each has its own network address, name, processes, shared memory, /tmp and
boot id, as machines of a small cluster have. The kernel, the clock, CPUs and memory are one machine's.

They hang on a switch (a bridge in a network of its own), which leads nowhere else. Nothing of it has a name outside: a host
lives as long as its first process, which ends when its input does, and so with the test, however that ends. The kernel then
kills all that runs there and takes its links and mounts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--mount-proc", "bash", "-ec")
OWN = ("/tmp", "/dev/shm")
"""Folders that each host has for itself: Ray's sessions and sockets, its object store."""
NETWORK = "10.231.0"
SWITCH = f"{NETWORK}.254"
"""The way to everywhere else, which real hosts have and vLLM and Ray ask for; it ends there."""
NAMES, BOOT = "/etc/hosts", "/proc/sys/kernel/random/boot_id"
ASIDE = "/mnt"
"""Where shared folders wait until the folders above them are the host's own."""


class NotPermitted(Exception):
    """This machine permits no such hosts."""


@dataclass(frozen=True)
class Host:
    """init: its first process, as this machine numbers it."""

    name: str
    address: str
    init: int

    def words(self, *argv: str | Path, cwd: Path = Path("/")) -> list[str]:
        """A command line that runs one there."""
        inside = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", f"--target={self.init}", *inside, "env", f"--chdir={cwd}", *map(str, argv)]

    def run(self, *argv: str | Path, cwd: Path = Path("/"), **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*argv, cwd=cwd), capture_output=True, text=True, env={**os.environ, **env})

    def sees(self, path: str | Path) -> Path:
        """What is at a path there, as this machine reaches it."""
        return Path(f"/proc/{self.init}/root{path}")

    def processes(self) -> list[psutil.Process]:
        """All that run there now, but the first."""
        here, found = os.readlink(f"/proc/{self.init}/ns/pid"), []
        for one in psutil.process_iter():
            try:
                if one.pid != self.init and os.readlink(f"/proc/{one.pid}/ns/pid") == here:
                    found.append(one)
            except OSError:  # ended meanwhile
                continue
        return found

    @contextmanager
    def hidden(self, folder: Path) -> Iterator[None]:
        """The folder is empty there, as one that is not mounted, for what runs there already too."""
        _done(self.run("mount", "-t", "tmpfs", "tmpfs", folder))
        try:
            yield
        finally:
            _done(self.run("umount", "--lazy", folder))


@contextmanager
def hosts(*names: str, shared: Sequence[Path]) -> Iterator[list[Host]]:
    """Hosts that reach each other by name and address. shared: folders that all see, as by NFS, also where they lie in one of
    ``OWN``. Raises NotPermitted."""
    if why := refused():
        raise NotPermitted(f"no hosts in namespaces: {why}")
    with ExitStack() as stack:
        bridge = f"ip link add name lan type bridge; ip addr add {SWITCH}/24 dev lan; ip link set lan up"
        switch = stack.enter_context(_started(Host("switch", SWITCH, 0), bridge))
        made = [Host(name, f"{NETWORK}.{number}", 0) for number, name in enumerate(names, 1)]
        yield [stack.enter_context(_plugged(host, made, shared, switch)) for host in made]


def refused() -> str | None:
    """Why this machine permits no such hosts, in words."""
    if os.geteuid() != 0:
        return "only root may make them"
    if lacking := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"{' and '.join(lacking)} missing (Debian: iproute2, util-linux)"
    links = "ip link add name lan type bridge; ip link add name one type veth peer name two"
    tried = subprocess.run([*UNSHARE, f"mount -t tmpfs tmpfs {ASIDE}; {links}"], capture_output=True, text=True)
    return " ".join(tried.stderr.split()) or f"exit code {tried.returncode}" if tried.returncode else None


@contextmanager
def _started(host: Host, setup: str) -> Iterator[Host]:
    """Its first process, which sets it up, adopts what loses its parent, and ends with its input."""
    script = f"{setup}; echo ready; read -r || true"
    child = subprocess.Popen([*UNSHARE, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n", f"host {host.name} was not set up"
        (init,) = psutil.Process(child.pid).children()
        yield Host(host.name, host.address, init.pid)
    finally:
        child.stdin.close()
        child.wait()


@contextmanager
def _plugged(host: Host, all_hosts: Sequence[Host], shared: Sequence[Path], switch: Host) -> Iterator[Host]:
    with _started(host, "; ".join(_folders(host, all_hosts, shared))) as made:
        ends = ("eth0", "netns", str(made.init), "type", "veth", "peer", "name", made.name, "netns", str(switch.init))
        _done(subprocess.run(["ip", "link", "add", "name", *ends], capture_output=True, text=True))
        _done(switch.run("ip", "link", "set", made.name, "master", "lan", "up"))
        address = f"ip addr add {made.address}/24 dev eth0; ip link set lo up; ip link set eth0 up"
        _done(made.run("bash", "-ec", f"{address}; ip route add default via {SWITCH}"))
        yield made


def _folders(host: Host, all_hosts: Sequence[Host], shared: Sequence[Path]) -> Iterator[str]:
    """Shell commands by which a host has its own name, and folders as it should see them."""
    yield f"hostname {host.name}"
    yield f"mount -t tmpfs tmpfs {ASIDE}"
    for number, folder in enumerate(shared):
        yield f"mkdir {ASIDE}/{number}; mount --rbind {shlex.quote(str(folder))} {ASIDE}/{number}"
    yield from (f"mount -t tmpfs tmpfs {folder}" for folder in OWN)
    for number, folder in enumerate(shared):
        place = shlex.quote(str(folder))
        yield f"mkdir -p {place}; mount --move {ASIDE}/{number} {place}"
    others = [f"{one.address} {one.name}" for one in all_hosts if one != host]
    names = ["127.0.0.1 localhost", f"127.0.1.1 {host.name}", *others]  # its own as Debian's installer writes it
    yield f"printf '%s\\n' {shlex.join(names)} > {ASIDE}/names; mount --bind {ASIDE}/names {NAMES}"
    yield f"cat /proc/sys/kernel/random/uuid > {ASIDE}/boot; mount --bind {ASIDE}/boot {BOOT}"
    yield f"umount --lazy {ASIDE}"


def _done(tried: subprocess.CompletedProcess[str]) -> None:
    assert tried.returncode == 0, f"{shlex.join(tried.args)}: {tried.stderr}"
