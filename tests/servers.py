"""A public bucket on localhost, with the faults that servers have."""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 3  # keys of a page of the listing


class Bucket(ThreadingHTTPServer):
    """Lists and serves ``files`` as S3 does (ListObjectsV2, ranges).

    Attributes:
        files: Contents by key.
        faults: By key, what goes wrong with the next answers: ``cut`` (the connection breaks in
            the middle), ``503``, ``wrong`` (a byte is another), ``slow``.
        asked: How often each key was asked for.
        served: Bytes that went out, by key.
        listing: What is answered instead of the listing, if anything.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults = files, dict[str, list[str]]()
        self.asked: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.listing: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        bucket, parts = self.server, urlsplit(self.path)
        key = unquote(parts.path).lstrip("/")
        fault = (bucket.faults.get(key) or [""]).pop(0) if bucket.faults.get(key) else ""
        bucket.asked[key] += 1
        if fault == "503":
            self.send_error(503, "Slow Down")
            return
        if not key:
            self._list(parse_qs(parts.query))
            return
        if key not in bucket.files:
            self.send_error(404)
            return
        body = bucket.files[key]
        wanted = self.headers.get("Range")
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        if start >= len(body) > 0:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = bytearray(body[start:])
        if fault == "wrong":
            rest[len(rest) // 2] ^= 1
        if fault == "cut":
            rest = rest[: len(rest) // 2]
        if fault == "slow":
            for i in range(0, len(rest), max(1, len(rest) // 8)):
                time.sleep(0.02)
                self.wfile.write(rest[i : i + max(1, len(rest) // 8)])
        else:
            self.wfile.write(rest)
        bucket.served[key] += len(rest)

    def _list(self, query: dict[str, list[str]]) -> None:
        keys = sorted(k for k in self.server.files if k.startswith(query.get("prefix", [""])[0]))
        first = int(query.get("continuation-token", ["0"])[0])
        page = keys[first : first + PAGE]
        more = first + PAGE < len(keys)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.files[key])}</Size>"
            "</Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{first + PAGE}</NextContinuationToken>" if more else ""
        answer = (
            self.server.listing
            or (
                '<?xml version="1.0" encoding="UTF-8"?>'
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}</ListBucketResult>"
            ).encode()
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Bucket]:
    """A bucket that serves while the block runs."""
    with Bucket(files) as bucket:
        threading.Thread(target=bucket.serve_forever, daemon=True).start()
        yield bucket
        bucket.shutdown()
