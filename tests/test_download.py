"""Downloads against a real server on localhost, with the faults that servers have."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sslpath.datasets.download import download
from sslpath.errors import DataError

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves BODY; ``cut`` breaks that many answers in the middle, ``fail`` answers 503 first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.cut, self.fail, self.body = True, 0, 0, BODY
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.fail:
            server.fail -= 1
            self.send_error(503)
            return
        if self.path != "/file.zip":
            self.send_error(404)
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and server.ranges else 0
        if start >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        rest = server.body[start:]
        if server.cut:
            server.cut -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield it
        it.shutdown()


def fetch(server: Server, target: Path, **settings: object) -> Path:
    return download(server.url, target, wait_s=0.01, progress=False, **settings)  # type: ignore[arg-type]


def test_a_file_arrives_whole_and_no_partial_file_stays(server: Server, tmp_path: Path) -> None:
    target = fetch(server, tmp_path / "new" / "file.zip", checksum=SHA)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file.zip"]


def test_a_broken_connection_is_taken_up_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 2
    assert fetch(server, tmp_path / "f", checksum=SHA).read_bytes() == BODY
    assert server.requests == [None, "bytes=1500000-", "bytes=2250000-"]


def test_a_later_call_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cut = 1
    with pytest.raises(DataError, match="run the same command to go on"):
        fetch(server, tmp_path / "f", attempts=1)
    assert not (tmp_path / "f").exists()
    assert fetch(server, tmp_path / "f", checksum=SHA).read_bytes() == BODY
    assert server.requests[-1] == "bytes=1500000-"


def test_a_complete_partial_file_is_finished_without_another_byte(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    assert fetch(server, tmp_path / "f", checksum=SHA).read_bytes() == BODY


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut = False, 1
    assert fetch(server, tmp_path / "f", checksum=SHA).read_bytes() == BODY


def test_server_errors_are_tried_again(server: Server, tmp_path: Path) -> None:
    server.fail = 2
    assert fetch(server, tmp_path / "f", checksum=SHA).read_bytes() == BODY


def test_wrong_bytes_are_deleted_and_named(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"x"
    with pytest.raises(DataError, match=r"f from .* has SHA-256"):
        fetch(server, tmp_path / "f", checksum=SHA)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="404"):
        download(server.url + "x", tmp_path / "f", wait_s=0.01, progress=False)
    assert len(server.requests) == 1


def test_a_present_file_is_verified_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BODY)
    fetch(server, tmp_path / "f", checksum=SHA)
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(DataError, match="Delete the file"):
        fetch(server, tmp_path / "f", checksum=SHA)
    assert server.requests == []
