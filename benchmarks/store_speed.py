"""A checkpoint to the store and back, against plain copies of the same files through fsspec, on a real S3 server.

python benchmarks/store_speed.py [megabytes=512] [shards=4] [turns=3] [folder=.]   (of the training environment)

Makes a checkpoint of that size in a temporary folder below `folder`, starts the S3 server of the tests on loopback (nanio: one
process, objects as files below the same folder), and deletes both. Each turn takes in another order: `store.send` and
`store.pull`, which also hash what they move, compare it, wait until it is on disk and write an entry; and fsspec's own `put`
and `get` of the folder, file by file through the same client. Client, server and disk share one machine, so that these are no
figures of any network; the ratio says what parallel pieces gain and what verification costs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from s3_server import BUCKET, serving  # noqa: E402

from synergy.driver import identity, ledger, manifest, remote, scan, store  # noqa: E402


def checkpoint(root: Path, size: int, shards: int) -> ledger.Entry:
    """A finished stage whose output has that many bytes."""
    output = root / "stages/sft-0/output"
    output.mkdir(parents=True)
    for number in range(shards):
        with (output / f"model-{number}.bin").open("wb") as stream:
            for _ in range(size // shards >> 20):
                stream.write(os.urandom(1 << 20))
    sums = manifest.write(output.parent)
    return ledger.Entry("0" * 64, "sft", "sft", "stages/sft-0/output", identity.digest_of(sums), "")


def seconds(work: Callable[[], object]) -> float:
    scan._seen.clear()  # what a process of its own would not remember
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main(size: int = 512, shards: int = 4, turns: int = 3, folder: str = ".") -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place, serving(Path(place) / "s3") as server:
        os.environ.update(server.env)
        root, url = Path(place) / "runs", f"s3://{BUCKET}/speed"
        entry = checkpoint(root, size << 20, shards)
        fs, output = remote.connect(url).fs, root / entry.output
        took: dict[str, list[float]] = {name: [] for name in ("store.send", "put", "store.pull", "get")}
        for turn in range(turns):
            at = f"{url}-{turn}"
            plain = at.removeprefix("s3://") + "/plain"

            def send(at: str = at) -> None:
                store.send(at, root, entry, lambda *told: None)

            def put(plain: str = plain) -> None:
                for file in output.iterdir():
                    fs.put_file(str(file), f"{plain}/{file.name}")

            def pull(at: str = at) -> None:
                (stored,) = store.find(at, [entry.key])[entry.key]
                store.pull(at, stored, Path(place) / "pulled", lambda *told: None)

            def get(plain: str = plain) -> None:
                (Path(place) / "got").mkdir()
                for file in output.iterdir():
                    fs.get_file(f"{plain}/{file.name}", str(Path(place) / "got" / file.name))

            ways = {"store.send": send, "put": put, "store.pull": pull, "get": get}
            for name in [list(ways), ["put", "store.send", "get", "store.pull"]][turn % 2]:
                took[name].append(seconds(ways[name]))
            assert identity.sums(Path(place) / "pulled/output") == identity.sums(Path(place) / "got")
            for used in ("pulled", "got", f"s3/{BUCKET}/speed-{turn}"):
                shutil.rmtree(Path(place) / used)
        print(f"{size} MB in {shards} files, {os.cpu_count()} CPUs, median of {turns} turns (all: fastest to slowest)")
        for name, ours in took.items():
            print(
                f"{name:<12}{median(ours):7.2f} s {size / median(ours):7.0f} MB/s   {min(ours):.2f} to {max(ours):.2f} s"
            )
        for ours, theirs in (("store.send", "put"), ("store.pull", "get")):
            ratios = [a / b for a, b in zip(took[theirs], took[ours], strict=True)]
            print(
                f"{ours} is {median(ratios):.2f} times as fast as fsspec's {theirs} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    main(
        int(given.get("megabytes", 512)),
        int(given.get("shards", 4)),
        int(given.get("turns", 3)),
        given.get("folder", "."),
    )
