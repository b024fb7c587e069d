"""A loopback server that speaks enough of W&B's protocol for the real client: runs, files, sweeps, agents.

`FakeWandb()` is a context manager; `runs[id]` has config, history, summary, exit and files; `sweeps[id]` the file it was
made from. The agents' heartbeats get one of the `points` each, and then `exit`. With `stop_after`, runs are stopped as on
their page after that many epochs.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0" * 40
_PLACE = {"id": "p1", "name": "proj", "entity": {"id": "e1", "name": "me"}}


class FakeWandb:
    def __init__(self, points: list[dict[str, Any]] | None = None) -> None:
        self.points = list(points or [])
        self.given = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, Any] = {}
        self.states: dict[str, str] = {}
        self.operations: list[str] = []
        self.lock = threading.Lock()
        self.down = False
        self.stop_after: int | None = None

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *connection: object) -> None:  # clients leave as they like
                pass

        self.server = Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeWandb":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def allowed(self, headers: Any) -> bool:
        from base64 import b64decode

        return KEY in b64decode(headers.get("Authorization", "").removeprefix("Basic ")).decode()

    def run(self, id: str) -> dict[str, Any]:
        return self.runs.setdefault(id, {"config": {}, "history": [], "summary": {}, "exit": None, "files": {}})

    def stream(self, id: str, sent: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            run = self.run(id)
            for name, part in (sent.get("files") or {}).items():
                lines = (
                    [json.loads(line) for line in part["content"]] if name.endswith(("jsonl", "summary.json")) else []
                )
                if name == "wandb-history.jsonl":
                    offset = part["offset"]  # as the real server: the lines take their places
                    run["history"][offset : offset + len(lines)] = lines
                elif name == "wandb-summary.json":
                    run["summary"] |= lines[-1]
            if sent.get("complete"):
                run["exit"] = sent.get("exitcode")
            return run

    def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name, values = (found.group(1) if found else ""), asked.get("variables") or {}
        self.operations.append(name)
        answer = getattr(self, f"on_{name}", lambda values: {})
        return answer(values)

    def on_Viewer(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def on_ServerFeaturesQuery(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_UpsertBucket(self, values: dict[str, Any]) -> dict[str, Any]:
        id = values.get("name") or values.get("id")
        run = self.run(id)
        if values.get("config"):
            run["config"] |= json.loads(values["config"])
        run["sweep"] = values.get("sweep") or run.get("sweep")
        bucket = {"id": id, "name": id, "displayName": values.get("displayName") or id, "config": "{}"}
        more = {"project": _PLACE, "historyLineCount": 0, "sweepName": run["sweep"]}
        return {"upsertBucket": {"bucket": bucket | more, "inserted": True}}

    def on_RunResumeStatus(self, values: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(values["name"])
        if run is None:
            return {"model": {"id": "p1", "name": "proj", "entity": _PLACE["entity"], "bucket": None}}
        bucket = {
            "id": values["name"],
            "name": values["name"],
            "summaryMetrics": json.dumps(run["summary"]),
            "displayName": values["name"],
            "logLineCount": 0,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run["config"]),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {"id": "p1", "name": "proj", "entity": _PLACE["entity"], "bucket": bucket}}

    def on_CreateRunFiles(self, values: dict[str, Any]) -> dict[str, Any]:
        run = values.get("run") or values.get("runName")
        files = [{"name": name, "uploadUrl": f"{self.url}/put/{run}/{name}"} for name in values.get("files", [])]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def on_UpsertSweep(self, values: dict[str, Any]) -> dict[str, Any]:
        id = values.get("id") or f"sweep{len(self.sweeps) + 1}"
        if values.get("config"):
            self.sweeps[id] = yaml.safe_load(values["config"])
        self.states[id] = values.get("state") or self.states.get(id, "PENDING")
        sweep = {"name": id, "id": id, "project": _PLACE}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, values: dict[str, Any]) -> dict[str, Any]:
        id = values["sweep"]
        known = {"id": id, "name": id, "state": self.states.get(id), "runs": {"edges": []}}
        return {"project": {"sweep": known if id in self.states else None}}

    def on_CreateAgent(self, values: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "a1"}}}

    def on_Heartbeat(self, values: dict[str, Any]) -> dict[str, Any]:
        busy = json.loads(values.get("runState") or "{}")
        commands: list[dict[str, Any]] = []
        if not busy and self.given < len(self.points):
            args = {key: {"value": value} for key, value in self.points[self.given].items()}
            self.given += 1
            commands = [{"type": "run", "run_id": f"run{self.given}", "args": args}]
        elif self.stop in busy:
            commands, self.stop = [{"type": "stop", "run_id": self.stop}], None
        elif not busy:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands)}}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: Any, code: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_PUT(self) -> None:
        content = self.body()
        if self.fake.down:
            return self.answer({}, 503)
        _, _, run, name = self.path.split("/", 3)
        self.fake.run(run)["files"][name] = content
        return self.answer({})

    def do_POST(self) -> None:
        content = self.body()
        if self.fake.down:
            return self.answer({}, 503)
        if self.path.endswith("/file_stream"):
            run = self.fake.stream(self.path.split("/")[-2], json.loads(content))
            stopped = self.fake.stop_after is not None and len(run["history"]) >= self.fake.stop_after
            return self.answer({"exitcode": None, "limits": {}, "stopped": stopped})
        if self.path != "/graphql":
            return self.answer({})
        if not self.fake.allowed(self.headers):
            return self.answer({"errors": [{"message": "user is not logged in"}]}, 401)
        with self.fake.lock:
            return self.answer({"data": self.fake.graphql(json.loads(content))})

    def do_GET(self) -> None:
        self.answer({})
