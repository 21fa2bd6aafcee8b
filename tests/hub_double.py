"""A small Hugging Face hub on loopback: the endpoints by which huggingface_hub 1.33 uploads a data set, with real bytes.

What it answers is what the client's own code reads (huggingface_hub/hf_api.py, _commit_api.py, lfs.py, _upload_pipeline.py); a
request that it does not know, or one without a key that the hub wants, is answered with 501 and kept in ``unknown``, so that a
client that begins to ask otherwise fails the tests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_" + "w" * 34: ("ann", True), "hf_" + "r" * 34: ("ann", False)}
"""Token -> whose it is, and whether it may write."""
WRITE, READ = TOKENS


@dataclass
class Repo:
    """branches: name -> path -> bytes. commits: their messages, oldest first."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """lfs: sha256 -> bytes, as they were put. seen: (method, path) of every request. silent: seconds before it answers."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    silent: float = 0.0
    xet: str = ""
    """A folder for hf_xet, if files go that way: then a commit's large files are its sums, as text."""
    forgets: str = ""
    """A file that a commit loses."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Refused(Exception):
    """code, message, the hub's word for it in X-Error-Code, and what else the answer has."""


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str, sample: bytes, size: int) -> bool:
    """By the hub's default .gitattributes and its look at the first bytes: binary files, and large ones."""
    return size > 10_000_000 or b"\0" in sample or name.endswith((".parquet", ".zip", ".png", ".jpg"))


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _handle(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        time.sleep(self.hub.silent)
        code, told, headers = 200, None, {}
        with self.hub.lock:
            self.hub.seen.append((self.command, path))
            try:
                for pattern, function in ROUTES:
                    if found := re.fullmatch(pattern, f"{self.command} {path}"):
                        told = function(self, body, *found.groups())
                        break
                else:
                    raise Refused(501, "not a request of this hub", "")
            except Refused as error:
                code, message, word, *more = error.args
                told, headers = (
                    {"error": message, **(more[0] if more else {})},
                    {"X-Error-Code": word, "X-Error-Message": message},
                )
            except (KeyError, TypeError, ValueError) as error:
                code, told = 501, {"error": repr(error)}
            if code == 501:
                self.hub.unknown.append(f"{self.command} {path}: {told}")
        data = json.dumps(told).encode()
        with contextlib.suppress(ConnectionError):  # the client went away
            self._answer(code, data, headers)

    def _answer(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def user(self) -> tuple[str, bool]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header", "")
        return TOKENS[token]

    def repo(self, name: str, write: bool = False) -> Repo:
        user, may_write = self.user()
        if name not in self.hub.repos or (self.hub.repos[name].private and not name.startswith(f"{user}/")):
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and not (may_write and name.startswith(f"{user}/")):
            raise Refused(403, "Forbidden: you don't have write access", "")
        return self.hub.repos[name]

    def branch(self, repo: Repo, name: str) -> dict[str, bytes]:
        if name not in repo.branches:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return repo.branches[name]


def create(at: Handler, body: bytes) -> Any:
    given = json.loads(body)
    user, may_write = at.user()
    assert given["type"] == "dataset"
    name = f"{given['organization'] or user}/{given['name']}"
    if not may_write or not name.startswith(f"{user}/"):
        raise Refused(403, "Forbidden: you don't have the necessary permissions", "")
    if name in at.hub.repos:
        raise Refused(409, "You already created this dataset repo", "", {"url": f"{at.hub.url}/datasets/{name}"})
    at.hub.repos[name] = Repo(given.get("visibility") == "private")
    return {"url": f"{at.hub.url}/datasets/{name}", "name": name, "id": "1"}


def info(at: Handler, _: bytes, name: str, branch: str | None = None) -> Any:
    repo = at.repo(name)
    files = at.branch(repo, branch or "main")
    siblings = [{"rfilename": path} for path in files]
    sha = hashlib.sha1(json.dumps(repo.commits).encode()).hexdigest()
    return {
        "_id": "1",
        "id": name,
        "private": repo.private,
        "sha": sha,
        "siblings": siblings,
        "tags": [],
        "downloads": 0,
    }


def new_branch(at: Handler, _: bytes, name: str, branch: str) -> Any:
    repo = at.repo(name, write=True)
    if branch in repo.branches:
        raise Refused(409, "Reference already exists", "")
    repo.branches[branch] = dict(repo.branches["main"])
    return {"success": True}


def validate(at: Handler, body: bytes) -> Any:
    given = json.loads(body)
    assert given["repoType"] == "dataset"
    front = yaml.safe_load(given["content"].split("---\n")[1])
    if bad := [
        word for word in front.get("size_categories", []) if not re.fullmatch(r"n[<>]1[KT]|\d+[KMBT]<n<\d+[KMBT]", word)
    ]:
        raise Refused(400, f"size_categories: {bad}", "")
    return {"errors": [], "warnings": []}


def preupload(at: Handler, body: bytes, name: str, branch: str) -> Any:
    files, told = at.branch(at.repo(name, write=True), branch), []
    for file in json.loads(body)["files"]:
        large = is_large(file["path"], base64.b64decode(file["sample"]), file["size"])
        there = files.get(file["path"])
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else blob_id(there)
        told.append(
            {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
        )
    return {"files": told}


def batch(at: Handler, body: bytes, name: str) -> Any:
    at.repo(name, write=True)
    given, objects = json.loads(body), []
    assert given["operation"] == "upload" and given["hash_algo"] == "sha256" and "basic" in given["transfers"]
    for wanted in given["objects"]:
        actions = {
            "upload": {"href": f"{at.hub.url}/storage/{wanted['oid']}", "header": {}},
            "verify": {"href": f"{at.hub.url}/datasets/{name}.git/info/lfs/verify", "header": {}},
        }
        there = {} if wanted["oid"] in at.hub.lfs else {"actions": actions}
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **there})
    return {"transfer": "basic", "objects": objects}


def put(at: Handler, body: bytes, oid: str) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "the bytes are not those of this sum", "")
    at.hub.lfs[oid] = body
    return {}


def verify(at: Handler, body: bytes, name: str) -> Any:
    at.repo(name, write=True)
    given = json.loads(body)
    if len(at.hub.lfs[given["oid"]]) != given["size"]:
        raise Refused(422, "not this size", "")
    return {}


def commit(at: Handler, body: bytes, name: str, branch: str) -> Any:
    repo = at.repo(name, write=True)
    files = at.branch(repo, branch)
    head, *changes = [json.loads(line) for line in body.splitlines()]
    assert head["key"] == "header"
    for change in changes:
        value = change["value"]
        if value["path"] == at.hub.forgets:
            continue
        if change["key"] == "file":
            assert value["encoding"] == "base64"
            files[value["path"]] = base64.b64decode(value["content"])
        elif change["key"] == "lfsFile":
            data = value["oid"].encode() if at.hub.xet else at.hub.lfs[value["oid"]]
            assert value["algo"] == "sha256" and (at.hub.xet or len(data) == value["size"])
            files[value["path"]] = data
        else:
            raise ValueError(change["key"])
    repo.commits.append(head["value"]["summary"])
    oid = hashlib.sha1(body).hexdigest()
    return {
        "success": True,
        "commitOid": oid,
        "commitUrl": f"{at.hub.url}/datasets/{name}/commit/{oid}",
        "hookOutput": "",
    }


def xet_token(at: Handler, _: bytes, name: str, branch: str) -> Any:
    """Where hf_xet puts what it uploads: its own storage in a local folder, which its release can write."""
    at.branch(at.repo(name, write=True), branch)
    return {"casUrl": f"local://{at.hub.xet}", "accessToken": "xet", "exp": int(time.time()) + 3600}


def harnesses(at: Handler, _: bytes) -> Any:
    """The client asks once whether an agent drives it."""
    return {"standardEnvVars": [], "harnesses": {}}


def tree(at: Handler, _: bytes, name: str, branch: str) -> Any:
    files = at.branch(at.repo(name), branch)
    return [{"type": "file", "path": path, "size": len(data), "oid": blob_id(data)} for path, data in files.items()]


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., Any]]] = [
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate),
    (rf"GET /api/datasets/{REPO}", info),
    (rf"GET /api/datasets/{REPO}/revision/(.+)", info),
    (rf"POST /api/datasets/{REPO}/branch/(.+)", new_branch),
    (rf"POST /api/datasets/{REPO}/preupload/(.+)", preupload),
    (rf"POST /api/datasets/{REPO}/commit/(.+)", commit),
    (rf"GET /api/datasets/{REPO}/tree/(.+)", tree),
    (rf"POST /datasets/{REPO}\.git/info/lfs/objects/batch", batch),
    (rf"POST /datasets/{REPO}\.git/info/lfs/verify", verify),
    (rf"GET /api/datasets/{REPO}/xet-write-token/(.+)", xet_token),
    (r"GET /api/agent-harnesses", harnesses),
    (r"PUT /storage/([0-9a-f]{64})", put),
]


@contextmanager
def running() -> Iterator[Hub]:
    """The hub, as long as it is needed."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
