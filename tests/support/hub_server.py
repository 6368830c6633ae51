"""The Hugging Face hub's protocol for uploads, on the loopback: what huggingface_hub speaks to."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Repositories that are made and filled; `files` of a repository by its name."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.tokens: set[str | None] = set()
        self.stored: dict[str, bytes] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                owner.tokens.add(self.headers.get("Authorization"))
                status, answer = owner.respond(self.command, unquote(self.path), body)
                said = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST = do_PUT = _handle

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON of one request."""
        path = path.partition("?")[0]
        if method == "PUT" and path.startswith("/stored/"):
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.files.setdefault(repo, {})
            self.options[repo] = asked
            return 200, {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        for repo in self.files:
            if path == f"/api/models/{repo}/preupload/main":
                return 200, {"files": [self._mode(one) for one in json.loads(body)["files"]]}
            if path == f"/{repo}.git/info/lfs/objects/batch":
                objects = [self._object(one) for one in json.loads(body)["objects"]]
                return 200, {"transfer": "basic", "objects": objects}
            if path == f"/api/models/{repo}/commit/main":
                return 200, self._commit(repo, body)
            if path == f"/api/models/{repo}/revision/main" or path == f"/api/models/{repo}":
                return 200, {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": []}
        return 404, {"error": f"{method} {path}"}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None,
        }

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.url}/stored/{one['oid']}", "header": {}}
        return {**one, "authenticated": True, "actions": {"upload": upload}}

    def _commit(self, repo: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repo][value["path"]] = self.stored[value["oid"]]
        url = f"{self.url}/{repo}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}
