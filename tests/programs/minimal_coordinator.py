"""The least coordinator there is: pull, ack and result, and nothing else.

After the specification's own mock: ack reads the query, result wants one file, pull
hands out the same job for ever, and whatever else is asked is 404. Importable for its
`app`; as a program it says when it listens:

    python minimal_coordinator.py --listen 127.0.0.1:0
"""

import argparse
import socket
import sys
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form, Query, UploadFile

JOB: dict[str, Any] = {
    "job_id": "demo-hello",
    "runner": "cli",
    "requirements": {"gpu": False},
    "timeout_s": 120,
    "input": {"urls": [], "inline": {}},
    "command": "echo",
    "args": ["hello", "world"],
    "artifacts": [{"path": "output.txt", "type": "text/plain", "max_mb": 1}],
}


class Minimal:
    """The app, and what has happened to it."""

    def __init__(self) -> None:
        self.counts = {"pull": 0, "ack": 0, "result": 0}
        self.acks: list[tuple[str, str]] = []
        self.artifact: bytes | None = None
        self.metadata: str | None = None
        self.app = FastAPI(openapi_url=None)
        add = self.app.add_api_route
        add("/api/v1/jobs/pull", self.pull, methods=["POST"])
        add("/api/v1/jobs/ack", self.ack, methods=["POST"])
        add("/api/v1/jobs/result", self.result, methods=["POST"])

    async def pull(self, body: dict[str, Any]) -> dict[str, Any]:
        """Hand out the job, again and again."""
        self.counts["pull"] += 1
        assert isinstance(body["node_id"], str)
        return {"job": JOB}

    async def ack(
        self, job_id: Annotated[str, Query()], node_id: Annotated[str, Query()]
    ) -> dict[str, bool]:
        """Take both names from the query."""
        self.counts["ack"] += 1
        self.acks.append((job_id, node_id))
        return {"ok": True}

    async def result(
        self,
        job_id: Annotated[str, Form()],
        metadata: Annotated[str, Form()],
        artifact: Annotated[UploadFile, File()],
    ) -> dict[str, bool]:
        """Keep the last artifact's bytes."""
        self.counts["result"] += 1
        self.metadata = metadata
        self.artifact = await artifact.read()
        # One line each, for those who run this as a program.
        _say(f"result {job_id} {self.artifact!r} {self.counts}")
        return {"ok": True}


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    host, _, port = parser.parse_args().listen.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        sock.listen()
        bound = sock.getsockname()[1]
        _say(f"minimal coordinator listening on http://{host}:{bound}/api/v1")
        config = uvicorn.Config(Minimal().app, log_level="error")
        uvicorn.Server(config).run(sockets=[sock])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
