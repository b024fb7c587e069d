"""A loopback server that speaks enough of the Hugging Face Hub's protocol for the real client: create, commit, download.

`FakeHub()` is a context manager; `url` is for HF_ENDPOINT, `files[repository]` the content of each file by name, and
`tokens` the authorization of each request. With `refuse`, each request is answered with that status and with its token.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class FakeHub:
    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: list[str | None] = []
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                hub.respond(self)

            do_GET = do_HEAD = do_PUT = do_POST

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "FakeHub":
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.tokens.append(handler.headers.get("Authorization"))
        self.requests.append(f"{handler.command} {handler.path}")
        status, headers, content = 404, {}, b""
        if self.refuse:
            status, content = self.refuse, json.dumps({"error": f"no access with {self.tokens[-1]}"}).encode()
        elif handler.command == "POST":
            status, content = 200, json.dumps(self.post(handler.path, body)).encode()
        elif handler.command == "PUT":
            self.objects[handler.path.rpartition("/")[2]] = body
            status = 200
        elif found := re.fullmatch(r"/(.+?/.+?)/resolve/(?:main|c{40})/(.+)", handler.path):
            status, headers, content = self.file(found[1], found[2])
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def file(self, repository: str, name: str) -> tuple[int, dict[str, str], bytes]:
        content = self.files.get(repository, {}).get(name)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        return 200, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content

    def post(self, path: str, body: bytes) -> object:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(repository, {})
            self.private[repository] = bool(asked.get("private") or asked.get("visibility") == "private")
            return {"url": f"{self.url}/{repository}", "name": repository}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            large = ("safetensors", "png")
            modes = ["lfs" if each["path"].endswith(large) else "regular" for each in files]
            return {
                "files": [
                    {"path": each["path"], "uploadMode": mode, "shouldIgnore": False}
                    for each, mode in zip(files, modes, strict=True)
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            upload = [{**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}} for each in asked]
            return {"transfer": "basic", "objects": upload}
        if found := re.fullmatch(r"/api/models/(.+?/.+?)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[found[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[found[1]][value["path"]] = self.objects[value["oid"]]
            return {"commitUrl": f"{self.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return {"errors": [], "warnings": []}  # validation of the model card
