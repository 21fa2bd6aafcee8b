"""How reports are written: report.json, report.md, a self-contained report.html, and figures as PNG."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from synergy import machine
from synergy.report import tables

TEMPLATES, STATIC = Path(__file__).parent / "templates", Path(__file__).parent / "static"
SCRIPTS = ("tables.js", "explorer.js")


def publish(place: Path, fill: Callable[[Path], None], way_out: str = "free space or set run.dir") -> Path:
    """Fills a folder aside and puts it in its place; returns the page. Raises UserError where it can't be written, with the
    way out."""
    with machine.folder_aside(place, "the report", way_out) as aside:
        (aside / "figures").mkdir()
        fill(aside)
    return place / "report.html"


def files(out: Path, template: str, told: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """report.json with what is told, and report.md and report.html, which show it in a template's form."""
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    for kind, escaped in (("md", False), ("html", True)):
        (out / f"report.{kind}").write_text(_render(f"{template}.{kind}", escaped, shown), encoding="utf-8")


def in_base64(figures: Iterable[Path | None]) -> dict[str, str]:
    """Name -> PNG, of the figures that were drawn."""
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in figures if path is not None}


def _render(name: str, escaped: bool, told: Mapping[str, Any]) -> str:
    """In HTML Jinja escapes every value: what models write is not ours to trust. Markdown escapes its own."""
    env = Environment(
        loader=FileSystemLoader([TEMPLATES, STATIC]),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["escape_markdown"] = tables.escape
    # The page allows this one script, by its hash: markup that slipped in from a model could still not run any.
    script = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    env.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return env.get_template(f"{name}.j2").render(told)


def plain(value: Any) -> Any:
    """A JSON value without NaN and infinities, which JSON lacks: a diverged loss becomes null."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def date(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC")
