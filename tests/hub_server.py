"""A Hub on this machine: as much of its HTTP interface as huggingface_hub needs to push and to fetch."""

import base64
import hashlib
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TOKEN", "Hub", "Repository", "serve_hub"]

TOKEN = "hf_of_these_tests"
Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list[str])

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        found = self.commit_of(revision)
        assert found is not None
        return self.commits[found]


@dataclass
class Hub:
    """What the server knows, and what it was asked for."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    large: dict[str, bytes] = field(default_factory=dict[str, bytes])
    fetched: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Repository and file of every download."""
    lock: Any = field(default_factory=Lock)


@contextmanager
def serve_hub() -> Generator[Hub]:
    """The Hub, until the context ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._get()

        def do_HEAD(self) -> None:
            self._get()

        def do_PUT(self) -> None:
            content = self._body()
            hub.large[hashlib.sha256(content).hexdigest()] = content
            self._json({})

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self._body()
            if path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._refuse(401, "Unauthorized")
                return
            with hub.lock:
                self._post(path, body)

        def _post(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization'] or 'somebody'}/{asked['name']}"
                answer = {"url": f"{hub.endpoint}/{name}", "name": name, "id": name}
                known = name in hub.repositories
                if not known:
                    private = asked.get("visibility") == "private" or asked.get("private") is True
                    hub.repositories[name] = Repository(private=private)
                self._json(answer, status=409 if known else 200)
            elif found := re.fullmatch(r"/(.+?/.+?)\.git/info/lfs/objects/batch", path):
                objects = [
                    {**each, "actions": {"upload": {"href": f"{hub.endpoint}/upload/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._json({"transfer": "basic", "objects": objects})
            elif found := re.fullmatch(r"/api/models/(.+?/.+?)/branch/(.+)", path):
                repository = hub.repositories[found[1]]
                known = found[2] in repository.branches
                repository.branches.setdefault(found[2], repository.branches["main"])
                self._json({}, status=409 if known else 200)
            elif found := re.fullmatch(r"/api/models/(.+?/.+?)/preupload/(.+)", path):
                files = [
                    {
                        "path": each["path"],
                        "shouldIgnore": False,
                        "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    }
                    for each in json.loads(body)["files"]
                ]
                self._json({"files": files})
            elif found := re.fullmatch(r"/api/models/(.+?/.+?)/commit/(.+)", path):
                commit = self._commit(hub.repositories[found[1]], found[2], body)
                self._json({"commitUrl": f"{hub.endpoint}/{found[1]}/commit/{commit}", "commitOid": commit})
            else:
                self._refuse(404, "EntryNotFound")

        def _commit(self, repository: Repository, branch: str, body: bytes) -> str:
            files = dict(repository.files(branch))
            for line in body.splitlines():
                step = json.loads(line)
                value = step["value"]
                if step["key"] == "header":
                    repository.messages.append(value["summary"])
                elif step["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif step["key"] == "lfsFile":
                    files[value["path"]] = hub.large[value["oid"]]
                elif step["key"] == "deletedFile":
                    del files[value["path"]]
                else:
                    raise AssertionError(step["key"])
            text = f"{branch} {len(repository.commits)} {sorted(files)}"
            commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            repository.commits[commit] = files
            repository.branches[branch] = commit
            return commit

        def _get(self) -> None:
            path = unquote(urlsplit(self.path).path)
            found = re.fullmatch(r"/(?:api/models/)?(.+?/[^/]+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
            if found is None:
                self._refuse(404, "EntryNotFound")
                return
            name, what, revision, file = found.groups()
            repository = hub.repositories.get(name)
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repository is None or (repository.private and not allowed):
                self._refuse(401 if not allowed else 404, "RepoNotFound")
                return
            commit = repository.commit_of(revision or "main")
            if commit is None:
                self._refuse(404, "RevisionNotFound")
                return
            if repository.gated and what == "resolve":
                self._refuse(403, "GatedRepo")
                return
            files = repository.commits[commit]
            if what == "tree":
                self._json(
                    [
                        {"type": "file", "path": each, "size": len(content), "oid": _etag(content)}
                        for each, content in sorted(files.items())
                    ]
                )
            elif what == "resolve":
                self._send_file(name, str(file), files, commit)
            else:
                siblings = [{"rfilename": each} for each in sorted(files)]
                self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

        def _send_file(self, name: str, file: str, files: Files, commit: str) -> None:
            if file not in files:
                self._refuse(404, "EntryNotFound", commit)
                return
            if self.command == "GET":
                hub.fetched.append((name, file))
            self._send(200, files[file], {"ETag": f'"{_etag(files[file])}"', "X-Repo-Commit": commit})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts: list[bytes] = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _json(self, value: Any, *, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _refuse(self, status: int, code: str, commit: str = "") -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": code, **({"X-Repo-Commit": commit} if commit else {})}
            self._send(status, json.dumps({"error": code}).encode(), headers)

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
