"""A hub in memory: the few routes that `huggingface_hub` uses to share small folders."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = r"/api/(?P<kind>model|dataset)s/(?P<name>[\w.-]+/[\w.-]+)"
FILE = r"/(?P<sets>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
TOKEN = "hf_of_a_test"


@dataclass
class Repository:
    """Commits are whole trees, as in git."""

    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """A new tree on a branch."""
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass
class Endpoint:
    """A server that runs.

    Attributes:
        url: Its address.
        repositories: By kind (`model`, `dataset`) and name.
        sent: Names of the files that it handed out.
    """

    url: str
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def files(self, kind: str, name: str, branch: str = "main") -> dict[str, bytes]:
        """What lies on a branch."""
        found = self.repositories[kind, name]
        return found.commits[found.branches[branch]]


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Serves while the block runs."""
    hub = Endpoint("")

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._say({})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say({"error": "who are you?"}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(rf"{REPO}/(?P<verb>\w+)/(?P<branch>.+)", path):
            found = self.hub.repositories[match["kind"], match["name"]]
            page = f"{self.hub.url}/{'datasets/' * (match['kind'] == 'dataset')}{match['name']}"
            getattr(self, f"_{match['verb']}")(found, match["branch"], body, page)

    def _create(self, asked: dict[str, Any]) -> None:
        name, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        key = kind, name
        new = key not in self.hub.repositories
        private = asked.get("private") or asked.get("visibility") == "private"
        if new:
            self.hub.repositories[key] = Repository(bool(private))
        page = f"{self.hub.url}/{'datasets/' * (kind == 'dataset')}{name}"
        self._say({"url": page}, 200 if new else 409)

    def _branch(self, found: Repository, branch: str, body: bytes, page: str) -> None:
        new = branch not in found.branches
        found.branches.setdefault(branch, found.branches["main"])
        self._say({}, 200 if new else 409)

    def _preupload(self, found: Repository, branch: str, body: bytes, page: str) -> None:
        names = [one["path"] for one in json.loads(body)["files"]]
        as_they_are = {"uploadMode": "regular", "shouldIgnore": False}
        self._say({"files": [{"path": name, **as_they_are} for name in names]})

    def _commit(self, found: Repository, branch: str, body: bytes, page: str) -> None:
        files = dict(found.commits[found.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        sha = found.commit(branch, files)
        self._say({"commitUrl": f"{page}/commit/{sha}", "commitOid": sha})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(rf"{REPO}(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?", path):
            if files := self._tree(match["kind"], match["name"], match["revision"] or "main"):
                sha, tree = files
                listed = [
                    {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                    for name, data in tree.items()
                ]
                about = {"id": match["name"], "sha": sha, "siblings": []}
                self._say(listed if match["verb"] == "tree" else about)
        elif match := re.fullmatch(FILE, path):
            kind = "dataset" if match["sets"] else "model"
            if files := self._tree(kind, match["name"], match["revision"]):
                sha, tree = files
                data = tree[match["file"]]
                if self.command == "GET":
                    self.hub.sent.append(match["file"])
                self._send(data, 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha})

    def _tree(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self.headers.get("Authorization")):
            self._say({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        sha = found.branches.get(revision, revision)
        if sha not in found.commits:
            self._say({"error": "not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return None
        return sha, found.commits[sha]

    def _say(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(body).encode(), status, headers or {})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
