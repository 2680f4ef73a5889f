"""A W&B server of our own: it takes runs and keeps the rows that it is sent, or is down in one of the ways of servers."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """`mode`: works; silent (takes a request and never answers); broken (500); nonsense. `rows`: what was sent, by run."""

    daemon_threads = True

    def __init__(self, mode="works"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.rows, self.asked = mode, {}, 0

    def handle_error(self, *_):
        """Clients that were killed hang up as they like."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.asked += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.server.mode == "silent":
            time.sleep(0.1)
        if self.server.mode == "broken":
            self.answer({"error": "broken"}, 500)
        elif self.server.mode == "nonsense":
            self.answer({"data": {}})
        elif self.path == "/graphql":
            asked = json.loads(body)
            self.answer({"data": self.graphql(asked["query"], asked["variables"])})
        else:
            if match := re.fullmatch(r"/files/.*/(\w+)/file_stream", self.path):
                self.stream(match.group(1), json.loads(body))
            self.answer({})

    do_GET = do_PUT = do_POST

    def graphql(self, query, said):
        if "RunResumeStatus" in query:
            run = self.server.rows.get(said["name"])
            return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": run and self.held(run)}}
        if "UpsertBucket" in query:
            self.server.rows.setdefault(said["name"], [])
            project = {"name": "p", "entity": {"name": "e"}}
            bucket = {"id": said["name"], "name": said["name"], "displayName": said["name"], "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.server.url}/upload"} for n in said["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    @staticmethod
    def held(rows):
        """What a run that goes on is told of what is there."""
        return {
            "id": "b", "name": "b", "displayName": "b", "summaryMetrics": "{}", "logLineCount": 0, "eventsLineCount": 0,
            "historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]", "config": "{}", "tags": [], "notes": "", "wandbConfig": "{\"t\": 1}",
        }  # fmt: skip

    def stream(self, run, body):
        history = body.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        rows = self.server.rows.setdefault(run, [])
        for at, line in enumerate(history["content"], history["offset"]):
            rows[at : at + 1] = [json.loads(line)]

    def answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(mode="works"):
    """A server on a port of its own."""
    server = Server(mode)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.mode = "gone"
        server.shutdown()
        server.server_close()


def rows_of(folder):
    """The history of a run's folder, as W&B's own reader prints it."""
    (file,) = folder.glob("*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    said = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder).stdout
    records = map(json.loads, said.splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def offline(folder):
    """The rows of all the offline runs of a run's folder, one after the other."""
    return [row for one in sorted((folder / "wandb").glob("offline-run-*")) for row in rows_of(one)]
