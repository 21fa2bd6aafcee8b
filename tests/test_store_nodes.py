"""Nodes that share a store and no folder: recipes with doubles of the frameworks, killed anywhere, end the same on any node."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import make_checkpoint
from doubles import Clock
from rich.console import Console
from s3_server import Server
from test_crashes import Killed, boundaries, planned, pythons
from test_store import S3, content, mounted, s3, server, silent

from synergy import status
from synergy.driver import execute, identity, keep, ledger, plan, remote, retention, store
from synergy.driver.execute import Limits, Watcher
from synergy.driver.externals import External
from synergy.driver.ledger import Entry
from synergy.driver.plan import Plan, Workspace

__all__ = ["s3", "server"]  # fixtures


def todo(root: Path, url: str, recipe: str = "two_stage") -> Plan:
    """A recipe's real stages on a node of its own: its base model lies in a folder of its own, too."""
    base, space = root.parent / "base", Workspace(root, url)
    make_checkpoint(base)
    root.mkdir(exist_ok=True)
    outside = {"base": External(base, identity.digest(base))}
    return Plan(recipe, plan.make(list(planned(recipe)), outside, space, pythons()), space, pythons())


def drive(
    root: Path, url: str, recipe: str = "two_stage", policy: str = "all", clock: Clock | None = None
) -> tuple[list[Entry], list[str]]:
    """Runs it with doubles of the frameworks; the entries, and what people were told. clock: may kill it, in transfers too."""
    said: list[str] = []
    watch = Watcher(lambda step: None, lambda step, now: None, lambda step, word, s: said.append(f"{step.stage.name}: {word}"),
                    lambda step, text: said.append(f"{step.stage.name}: {text}"))  # fmt: skip
    clock = clock or Clock(Killed)
    with boundaries(clock), pytest.MonkeyPatch.context() as patch:
        for name in ("upload", "download", "write"):
            patch.setattr(remote.Remote, name, around(clock, name, getattr(remote.Remote, name)))
        made = todo(root, url, recipe)
        return execute.run(made, Limits(), watch, None, keep.Keeper.of(policy, [made])), said


def around(clock: Clock, name: str, real: Callable[..., None]) -> Callable[..., None]:
    def call(self: remote.Remote, what: Any, *rest: Any) -> None:
        clock(f"before {name}")
        if isinstance(what, list) and len(what) > 1:
            real(self, what[:1], *rest)
            clock(f"mid-{name}")
        real(self, what, *rest)
        clock(f"after {name}")

    return call


def node(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return place / "runs"


def test_a_node_without_the_folder_reuses_everything(s3: Server, tmp_path: Path) -> None:
    url, a, b = f"{S3}/nodes", node(tmp_path / "a"), node(tmp_path / "b")
    first, _ = drive(a, url)
    with boundaries(Clock(Killed)):
        seen = todo(b, url)
    assert [step.action for step in seen.steps] == ["reuse"] * len(first) and not any(step.here for step in seen.steps)
    assert all("in the store" in step.why for step in seen.steps)
    second, said = drive(b, url)
    assert [(e.key, e.digest, e.name) for e in second] == [(e.key, e.digest, e.name) for e in first]
    assert not any("done" in line for line in said)
    with boundaries(Clock(Killed)):
        assert all(step.here for step in todo(b, url).steps), "a second look has nothing left to fetch"
        alone = todo(b, "memory://nothing")
    assert all(step.action == "reuse" for step in alone.steps), "the run directory stands by itself"
    entries = ledger.read(b / "ledger.jsonl")
    gone = [e.name for e in entries.values() if retention.pruned((b / e.output).parent, e)]
    assert gone and all(entries[e.key].kind in plan.MODELS for e in first if e.name in gone), (
        "no model that nobody reads"
    )
    for entry in first:
        if entry.name not in gone:
            assert content(a / entry.output) == content(b / entry.output)


def test_a_node_goes_on_where_another_was_killed(s3: Server, tmp_path: Path) -> None:
    url, a, b, alone = f"{S3}/goes-on", node(tmp_path / "a"), node(tmp_path / "b"), node(tmp_path / "c")
    clock = Clock(Killed)
    with boundaries(clock), pytest.raises(Killed):
        made = todo(a, url)
        last = [step for step in made.steps if step.stage.kind == "rl"][-1]
        real = execute._run_step

        def run_step(step: plan.Step, *rest: object) -> Entry:
            if step.key == last.key:
                raise Killed
            return real(step, *rest)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execute, "_run_step", run_step)
            execute.run(made, Limits(), Watcher(lambda s: None, lambda s, n: None, lambda s, w, t: None))
    with boundaries(Clock(Killed)):
        steps = {step.stage.name: step for step in todo(b, url).steps}
    read = [steps[name] for name in steps[last.stage.name].stage.inputs.values() if name in steps]
    assert read and all(step.pull == "output" for step in read), "what the next stage reads is fetched whole"
    ended, _ = drive(b, url)
    straight, _ = drive(alone, "memory://straight")
    assert [(e.key, e.digest) for e in ended] == [(e.key, e.digest) for e in straight]


def test_what_was_finished_before_there_was_a_store_is_sent(tmp_path: Path) -> None:
    a, b = node(tmp_path / "a"), node(tmp_path / "b")
    drive(a, "")
    url = mounted(tmp_path)
    entries, said = drive(a, url)
    assert sum("sent" in line for line in said) == len(entries)
    again, _ = drive(b, url)
    assert [e.digest for e in again] == [e.digest for e in entries]


def test_run_keep_deletes_here_and_not_in_the_store(tmp_path: Path) -> None:
    url, a = mounted(tmp_path), node(tmp_path / "a")
    entries, _ = drive(a, url, "interleaved", "final")
    gone = [entry for entry in entries if not (a / entry.output).exists()]
    assert gone
    there = store.find(url, [entry.key for entry in entries])
    assert set(there) == {entry.key for entry in entries}
    for entry in gone:
        store.pull(url, there[entry.key][0], tmp_path / "c" / entry.key, silent)
        assert identity.digest(tmp_path / "c" / entry.key / "output") == entry.digest


def test_a_damaged_result_here_is_put_back_from_the_store(tmp_path: Path) -> None:
    url, a = mounted(tmp_path), node(tmp_path / "a")
    entries, _ = drive(a, url)
    file = a / entries[0].output / "order.json"
    was = file.read_bytes()
    file.write_bytes(b"[]")
    again, said = drive(a, url)
    assert file.read_bytes() == was and [e.digest for e in again] == [e.digest for e in entries]
    assert not any("done" in line for line in said)


def test_no_key_of_the_store_is_written_down(s3: Server, tmp_path: Path) -> None:
    url, a = f"{S3}/secrets", node(tmp_path / "a")
    drive(a, url)
    for name, data in {**content(tmp_path), **s3.files()}.items():
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data, name
    assert (a / store.MARK).read_text().strip() == url
    assert "AWS" not in json.dumps([asdict(e) for e in ledger.read(a / "ledger.jsonl").values()])


def test_status_tells_what_is_in_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, a = mounted(tmp_path), node(tmp_path / "a")
    entries, _ = drive(a, url)
    console = Console(width=200)
    status.show(a, console)
    assert f"in the store {url}: all of them" in capsys.readouterr().out
    for file in (tmp_path / "store/entries" / entries[0].key).iterdir():
        file.unlink()
    status.show(a, console)
    assert f"not yet: {entries[0].name} ({entries[0].kind})" in capsys.readouterr().out
    (a / store.MARK).write_text("s3://\n")
    status.show(a, console)
    assert "unknown: run.store=s3:// is no plain URL" in capsys.readouterr().out


def test_a_result_of_other_inputs_is_not_taken(tmp_path: Path) -> None:
    url, a = mounted(tmp_path), node(tmp_path / "a")
    entries, _ = drive(a, url)
    made = next(entry for entry in entries if entry.kind == "sft")
    (file,) = (tmp_path / "store/entries" / made.key).iterdir()
    told = json.loads(file.read_text())
    told["entry"]["inputs"]["data"] = "0" * 64
    file.write_text(json.dumps(told))
    store._entries.clear()
    with boundaries(Clock(Killed)):
        steps = {step.stage.name: step for step in todo(node(tmp_path / "b"), url).steps}
    assert steps[made.name].action == "run" and steps["data"].action == "reuse"
    assert steps["data"].pull == "output", "it is read"


def test_killed_anywhere_both_it_and_another_node_end_the_same(tmp_path: Path) -> None:
    clock = Clock(Killed)
    straight, _ = drive(node(tmp_path / "straight"), mounted(tmp_path / "straight"), clock=clock)
    wanted, names = [(e.key, e.digest) for e in straight], list(clock.names)
    transfers = [at for at, name in enumerate(names, 1) if any(name.endswith(w) for w in ("upload", "write"))]
    for at in sorted({*range(1, len(names), len(names) // 5), *transfers[1::5]}):
        place = tmp_path / str(at)
        url, a, b = mounted(place), node(place / "a"), node(place / "b")
        clock.arm(at)
        with pytest.raises(Killed):
            drive(a, url, clock=clock)
        assert [(e.key, e.digest) for e in drive(b, url)[0]] == wanted, names[at - 1]
        assert [(e.key, e.digest) for e in drive(a, url)[0]] == wanted, names[at - 1]
        there = store.find(url, [key for key, _ in wanted])
        assert [(key, one.entry.digest) for key, found in there.items() for one in found] == wanted, names[at - 1]
        shutil.rmtree(place)


def test_killed_while_it_fetches_a_node_goes_on(tmp_path: Path) -> None:
    url, clock = mounted(tmp_path), Clock(Killed)
    wanted = [(e.key, e.digest) for e in drive(node(tmp_path / "a"), url)[0]]
    drive(node(tmp_path / "count"), url, clock=clock)
    names = list(clock.names)
    assert any("mid-download" in name for name in names)
    for at in range(2, len(names) + 1, 5):
        b = node(tmp_path / f"b{at}")
        clock.arm(at)
        with pytest.raises(Killed):
            drive(b, url, clock=clock)
        assert [(e.key, e.digest) for e in drive(b, url)[0]] == wanted, names[at - 1]
        shutil.rmtree(b.parent)
