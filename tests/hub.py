"""A Hugging Face Hub on 127.0.0.1 that speaks the few endpoints of an upload and a download."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_nobody_may_see"


@dataclass
class Hub:
    """Repositories in memory.

    Attributes:
        commits: Of each repository, its commits in order: their ids and files.
        requests: Method and path of each.
        cut: Paths that contain this are answered with half of their body, or none, as often as `cuts` says.
    """

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: str = ""
    cuts: int = 0

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        known = self.commits.get(repository, [])
        if revision == "main":
            return known[-1] if known else None
        return next((it for it in known if it[0] == revision), None)

    def is_cut(self, path: str) -> bool:
        if self.cuts and self.cut and self.cut in path:
            self.cuts -= 1
            return True
        return False


@contextmanager
def served_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def reply(self, content: object, status: int = 200, **headers: str) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if status == 206 or status == 200:
                half = data[: len(data) // 2] if hub.is_cut(self.path) else data
                self.wfile.write(half)
                if len(half) < len(data):
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()
                return
            self.wfile.write(data)

        def parts(self) -> list[str]:
            hub.requests.append(f"{self.command} {self.path}")
            return [unquote(part) for part in urlsplit(self.path).path.split("/") if part]

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.parts()
            if parts[:2] == ["api", "models"] and len(parts) == 4:
                self.reply({"id": "/".join(parts[2:]), "private": False})
            elif parts[0] == "api" and len(parts) < 6:
                self.reply({"error": "not spoken here"}, 404)
            elif parts[0] == "api":
                repository, kind, revision = "/".join(parts[2:4]), parts[4], parts[5]
                found = hub.files(repository, revision)
                if found is None:
                    code = "RevisionNotFound" if repository in hub.commits else "RepoNotFound"
                    self.reply({"error": "not found"}, 404, X_Error_Code=code)
                elif kind == "tree":
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in found[1].items()
                    ]
                    self.reply(tree)
                else:
                    siblings = [{"rfilename": name} for name in found[1]]
                    self.reply({"id": repository, "sha": found[0], "siblings": siblings, "private": False, "tags": []})
            else:
                self.resolve(parts)

        def resolve(self, parts: list[str]) -> None:
            repository, _, revision, *name = "/".join(parts[:2]), parts[2], *parts[3:]
            found = hub.files(repository, revision)
            data = found and found[1].get("/".join(name))
            if not found or data is None:
                self.reply({"error": "not found"}, 404, X_Error_Code="EntryNotFound" if found else "RepoNotFound")
                return
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": found[0]}
            if self.headers.get("Range", "").startswith("bytes="):
                begin = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                whole = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                self.reply(data[begin:], 206, Content_Range=whole, **headers)
            else:
                self.reply(data, **headers)

        def do_PUT(self) -> None:
            oid = self.parts()[-1]
            if hub.is_cut(self.path):
                self.rfile.read(1000)
                self.close_connection = True
                self.connection.close()
                return
            hub.stored[oid] = self.body()
            self.reply(b"")

        def do_POST(self) -> None:
            parts, content = self.parts(), self.body()
            if parts == ["api", "validate-yaml"]:
                self.reply({"errors": [], "warnings": []})
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.reply({"error": "Invalid username or password."}, 401)
                return
            if parts == ["api", "repos", "create"]:
                asked = json.loads(content)
                repository = f"{asked.get('organization') or 'user'}/{asked['name']}"
                is_new = repository not in hub.commits
                hub.commits.setdefault(repository, [])
                self.reply({"url": f"{hub.url}/{repository}", "id": repository}, 200 if is_new else 409)
            elif "preupload" in parts:
                files = json.loads(content)["files"]
                large = [it["path"] for it in files if it["path"].endswith(".safetensors")]
                modes = [
                    {
                        "path": it["path"],
                        "uploadMode": "lfs" if it["path"] in large else "regular",
                        "shouldIgnore": False,
                    }
                    for it in files
                ]
                self.reply({"files": modes})
            elif parts[-2:] == ["objects", "batch"]:
                objects = []
                for it in json.loads(content)["objects"]:
                    actions = {"upload": {"href": f"{hub.url}/upload/{it['oid']}"}}
                    objects.append({**it, **({} if it["oid"] in hub.stored else {"actions": actions})})
                self.reply({"transfer": "basic", "objects": objects})
            elif "commit" in parts:
                repository = "/".join(parts[2:4])
                files = dict(hub.commits[repository][-1][1]) if hub.commits[repository] else {}
                for line in map(json.loads, content.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.stored[value["oid"]]
                commit = hashlib.sha1(content).hexdigest()
                hub.commits[repository].append((commit, files))
                self.reply({"commitUrl": f"{hub.url}/{repository}/commit/{commit}", "commitOid": commit})
            else:
                self.reply({"error": f"not spoken here: {parts}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
