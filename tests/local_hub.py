"""A small HuggingFace hub on this machine: what its client asks to push a folder and to load files from it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40


class LocalHub(ThreadingHTTPServer):
    """Keeps what is committed, all of it as regular files: the real hub wants large ones in its own storage.

    Attributes:
        files: Content by "ACCOUNT/NAME/FILE".
        tokens: The headers that authorize the commits.
        url: Its address.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tokens: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def be_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let ``huggingface_hub`` ask here in place of the hub, until the end of a test."""
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                repo = json.loads(content)
                self.reply({"url": f"{self.server.url}/{repo['organization']}/{repo['name']}"})
            case ["api", "validate-yaml"]:
                self.reply({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                paths = [file["path"] for file in json.loads(content)["files"]]
                self.reply({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
            case ["api", "models", account, name, "commit", _]:
                self.server.tokens.append(self.headers["Authorization"])
                for line in content.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        file = entry["value"]
                        self.server.files[f"{account}/{name}/{file['path']}"] = base64.b64decode(file["content"])
                self.reply({"commitUrl": f"{self.server.url}/{account}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
            case _:
                self.send_error(404)

    def do_GET(self) -> None:
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "models", account, name, "revision", _]:
                self.reply({"id": f"{account}/{name}", "sha": COMMIT, "siblings": []})
            case [account, name, "resolve", _, *path]:
                content = self.server.files.get("/".join([account, name, *path]))
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self.send(content, "application/octet-stream")
            case _:
                self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), "application/json")

    def send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub until the end of the block."""
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
