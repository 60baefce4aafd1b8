#!/usr/bin/env python3
"""A registry on loopback, for images and Docker's plugins: keeps what it gets, in a directory, by name or digest.

    registry.py DIR    serves on a free port and writes its number into DIR/port

As much of the distribution specification (Docker Registry HTTP API v2) as Docker and containerd use to push and pull.
For each blob that somebody has fetched there is a line in DIR/fetched: its digest, and how many bytes it has.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs


def digest_of(data: bytes) -> str:
    """Return the name of some content."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def kind_of(manifest: bytes) -> str:
    """Return the media type of a manifest or an index; those of OCI need not name theirs."""
    content = json.loads(manifest)
    default = "index" if "manifests" in content else "manifest"
    return str(content.get("mediaType") or f"application/vnd.oci.image.{default}.v1+json")


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # Whoever tries TLS first is to see from the answer that this is HTTP. (By default there is no head in what
    # http.server answers to something that it cannot read.)
    default_request_version = "HTTP/1.1"

    def file(self, name: str) -> Path:
        return Path(sys.argv[1], name.replace("/", "_"))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_GET(self) -> None:
        asked = re.fullmatch(r"/v2/(.+)/(blobs|manifests)/([^/?]+)", self.path)
        if self.path == "/v2/":
            self.reply(200, b"{}")
            return
        file = self.file(asked[3] if ":" in asked[3] else f"{asked[1]}/{asked[3]}") if asked else None
        if not (asked and file and file.exists()):
            self.reply(404, b'{"errors": []}')
            return
        data = file.read_bytes()
        kind = kind_of(data) if asked[2] == "manifests" else "application/octet-stream"
        if asked[2] == "blobs" and self.command == "GET":
            # Before the answer: whoever has it may look here at once.
            with Path(sys.argv[1], "fetched").open("a", encoding="ascii") as log:
                log.write(f"{asked[3]} {len(data)}\n")
        self.reply(200, data, Content_Type=kind, Docker_Content_Digest=digest_of(data))

    do_HEAD = do_GET  # noqa: N815 # http.server looks for this name

    def do_POST(self) -> None:
        """Begin an upload."""
        self.content()
        name = f"upload-{os.urandom(8).hex()}"
        self.file(name).touch()
        self.reply(202, Location=f"{self.path.partition('?')[0].rstrip('/')}/{name}", Range="0-0")

    def do_PATCH(self) -> None:
        """Take a part of an upload."""
        place = self.path.partition("?")[0]
        with self.file(place.rpartition("/")[2]).open("ab") as target:
            target.write(self.content())
            end = target.tell() - 1
        self.reply(202, Location=place, Range=f"0-{end}")

    def do_PUT(self) -> None:
        """End an upload, or take a manifest."""
        place, _, query = self.path.partition("?")
        manifest = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", place)
        data = self.content()
        if manifest:
            digest = digest_of(data)
            for name in (digest, f"{manifest[1]}/{manifest[2]}"):
                self.file(name).write_bytes(data)
        else:
            digest = parse_qs(query)["digest"][0]
            upload = self.file(place.rpartition("/")[2])
            with upload.open("ab") as target:
                target.write(data)
            upload.rename(self.file(digest))
        self.reply(201, Docker_Content_Digest=digest, Location=place)


def main() -> None:
    """Serve until the process is ended."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(sys.argv[1], "port.new").write_text(str(server.server_port), encoding="ascii")
    Path(sys.argv[1], "port.new").rename(Path(sys.argv[1], "port"))
    server.serve_forever()


if __name__ == "__main__":
    main()
