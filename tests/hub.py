"""A server on loopback for tests, with the part of the Hub's HTTP API that huggingface_hub needs.

It creates repositories, takes pushes (regular files and LFS), and serves files. Any request can be made to fail.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "secret" * 6


class Hub:
    """repos: id -> {path: bytes}; commits: (id, message); requests: (method, path); faults: [(pattern, status)].

    A fault is for one request. Status 0 closes the connection in the middle of the body. has_lfs=False: large files
    are pushed like small ones.
    """

    def __init__(self):
        self.repos, self.private, self.commits, self.requests, self.faults, self.blobs = {}, {}, [], [], [], {}
        self.has_lfs = True
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, home: str) -> dict[str, str]:
        """The environment of a process that uses this server as the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": home,
        }

    def fault(self, method: str, path: str) -> int | None:
        with self.lock:
            for i, (pattern, status) in enumerate(self.faults):
                if re.search(pattern, f"{method} {path}"):
                    del self.faults[i]
                    return status
        return None

    def revision(self, repo_id: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo_id].items())).encode()).hexdigest()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self, most: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(min(int(self.headers.get("Content-Length") or 0), most or 1 << 40))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, content=None, **headers) -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(payload), "X-Request-Id": "1", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def do(self) -> None:
        path, hub = self.path.partition("?")[0], self.hub
        hub.requests.append((self.command, path))
        status = hub.fault(self.command, path)
        if status == 0:
            self.body(most=1000)
            self.close_connection = True
            return self.connection.close()
        body = self.body()
        if status:
            return self.answer(status, {"error": f"an injected fault {status}"}, Retry_After=1)
        with contextlib.suppress(BrokenPipeError):
            self.route(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def route(self, path: str, body: bytes) -> None:
        hub = self.hub
        if path.startswith("/lfs/"):
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid, "other bytes than announced"
            hub.blobs[oid] = body
            return self.answer(200, {})
        if path == "/api/validate-yaml":  # requested without a login
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "someone", "type": "user"})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            if repo_id in hub.repos:
                return self.answer(409, {"error": "exists", "url": f"{hub.url}/{repo_id}"})
            hub.repos[repo_id], hub.private[repo_id] = (
                {},
                bool(wanted.get("private") or wanted.get("visibility") == "private"),
            )
            return self.answer(200, {"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": "1"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if hub.has_lfs and file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self.answer(200, {"files": modes})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {"oid": o["oid"], "size": o["size"]}
                | ({} if o["oid"] in hub.blobs else {"actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}})
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files, message = hub.repos[found[1]], ""
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "header":
                    message = item["value"]["summary"]
                elif item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    files[item["value"]["path"]] = hub.blobs[item["value"]["oid"]]
            hub.commits.append((found[1], message))
            sha = hub.revision(found[1])
            return self.answer(
                200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{found[1]}/commit/{sha}"}
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            if found[1] in hub.repos:
                siblings = [{"rfilename": name} for name in hub.repos[found[1]]]
                info = {
                    "id": found[1],
                    "sha": hub.revision(found[1]),
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                }
                return self.answer(200, info)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
            files = {n: c for n, c in hub.repos.get(found[1], {}).items() if n.startswith(found[2] or "")}
            if files:
                rows = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                return self.answer(200, rows)
            return self.answer(404, {"error": "no entry"}, X_Error_Code="EntryNotFound")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = hub.repos.get(found[1], {}).get(found[3])
            if content is not None:
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                return self.answer(200, content, ETag=etag, X_Repo_Commit=hub.revision(found[1]))
            return self.answer(404, {"error": "no entry"}, X_Error_Code="EntryNotFound")
        return self.answer(404, {"error": "no such thing"}, X_Error_Code="RepoNotFound")
