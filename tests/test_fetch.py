"""Downloads from real servers, which cut, lie, know no ranges, or are not there."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from buildlib import atomic, fetch, parts
from buildlib.errors import BuildError
from buildlib.fetch import Digest, Job

DATA = random.Random(1).randbytes(5_000_000)
DIGEST = Digest("sha256", hashlib.sha256(DATA).hexdigest())


class Server(ThreadingHTTPServer):
    """A mirror.

    asked  -- the ranges that were asked for
    cut    -- bytes after which answers end
    ranged -- knows ranges
    to     -- where else something is
    headers -- what was asked with
    delay  -- seconds before an answer, as of a mirror that is far away
    """

    daemon_threads = True

    def __init__(
        self,
        files: dict[str, bytes],
        *,
        cut: int | None = None,
        ranged: bool = True,
        to: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.to = to
        self.headers: list[Message] = []
        self.files, self.cut, self.ranged = files, cut, ranged
        self.asked: list[str] = []
        self.most = self.now = 0
        self.delay = 0.0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up when they have seen enough."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
        time.sleep(server.delay)
        with server.lock:
            # Before the client has its answer, and may ask for more.
            server.now -= 1
        self.answer()

    def answer(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        server.headers.append(self.headers)
        if self.path[1:] in server.to:
            self.send_response(302)
            self.send_header("Location", server.to[self.path[1:]])
            self.end_headers()
            return
        data = server.files.get(self.path[1:])
        if data is None:
            self.send_error(404)
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranged else 0
        if begin > len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        end = begin + server.cut if server.cut else len(data)
        self.wfile.write(data[begin:end])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def serve(
    servers: list[Server],
    files: dict[str, bytes],
    *,
    cut: int | None = None,
    ranged: bool = True,
    to: Mapping[str, str] = MappingProxyType({}),
) -> Server:
    servers.append(Server(files, cut=cut, ranged=ranged, to=to))
    return servers[-1]


def job(folder: Path, *urls: str, digest: Digest = DIGEST, size: int | None = len(DATA)) -> Job:
    return Job(urls, folder / "file", digest, size)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_once(servers: list[Server], tmp_path: Path) -> None:
    server = serve(servers, {"a": DATA})
    told: list[int] = []
    for _ in range(2):
        assert fetch.get(job(tmp_path, server.url("a")), told.append).read_bytes() == DATA
    assert server.asked == [""]
    assert sum(told) == len(DATA)
    assert left(tmp_path) == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [len(DATA), None])
def test_what_was_cut_goes_on(servers: list[Server], tmp_path: Path, size: int | None) -> None:
    server = serve(servers, {"a": DATA}, cut=2_000_000)
    assert fetch.get(job(tmp_path, server.url("a"), size=size)).read_bytes() == DATA
    first, second, third = (int(asked.removeprefix("bytes=").rstrip("-") or 0) for asked in server.asked)
    assert first < second < third
    assert second > 1_900_000


def test_another_run_goes_on_with_another_mirror(servers: list[Server], tmp_path: Path) -> None:
    short = serve(servers, {"a": DATA}, cut=1_000_000)
    with pytest.raises(BuildError, match="the connection was cut"):
        fetch.get(job(tmp_path, short.url("a")))
    whole = serve(servers, {"a": DATA})
    assert fetch.get(job(tmp_path, whole.url("a"))).read_bytes() == DATA
    (asked,) = whole.asked
    assert 2_700_000 < int(asked.removeprefix("bytes=").rstrip("-")) <= 3_000_000


def test_a_server_without_ranges_begins_anew(servers: list[Server], tmp_path: Path) -> None:
    short = serve(servers, {"a": DATA}, cut=1_000_000)
    whole = serve(servers, {"a": DATA}, ranged=False)
    assert fetch.get(job(tmp_path, short.url("a"), whole.url("a"))).read_bytes() == DATA
    assert not fetch.ranges(whole.url("a"))
    assert fetch.ranges(short.url("a"))
    poor = serve(servers, {"a": DATA}, cut=1_000_000, ranged=False)
    (tmp_path / "file").unlink()
    with pytest.raises(BuildError, match="was cut, and the server sends no parts of files: each try begins anew"):
        fetch.get(job(tmp_path, poor.url("a")))


def test_the_next_mirror_is_tried(servers: list[Server], tmp_path: Path) -> None:
    wrong = serve(servers, {"a": DATA[:-1] + b"x"})
    right = serve(servers, {"a": DATA})
    urls = ("http://127.0.0.1:1/a", right.url("none"), wrong.url("a"), right.url("a"))
    assert fetch.get(job(tmp_path, *urls)).read_bytes() == DATA


def test_what_is_wrong_is_told_and_left_nowhere(servers: list[Server], tmp_path: Path) -> None:
    server = serve(servers, {"a": DATA[:-1] + b"x", "short": DATA[:-1]})
    urls = (server.url("a"), server.url("short"), server.url("none"), "http://127.0.0.1:1/a")
    wrong = hashlib.sha256(DATA[:-1] + b"x").hexdigest()
    with pytest.raises(BuildError) as error:
        fetch.get(job(tmp_path, *urls))
    assert error.value.message.splitlines() == [
        f"{urls[0]}: is not what it should be: sha256 {wrong}, not {DIGEST.value}",
        f"{urls[1]}: has 4,999,999 bytes, not 5,000,000",
        f"{urls[2]}: is not there (404)",
        f"{urls[3]}: Connection refused",
    ]
    assert left(tmp_path) == []


def test_many_come_side_by_side(servers: list[Server], tmp_path: Path) -> None:
    files = {f"f{number}": random.Random(number).randbytes(50_000) for number in range(60)}
    server = serve(servers, files)
    server.delay = 0.05
    told: list[tuple[int, int]] = []
    jobs = [
        Job((server.url(name),), tmp_path / name, Digest("sha1", hashlib.sha1(data).hexdigest()), len(data))
        for name, data in files.items()
    ]
    fetch.get_all(jobs, lambda done, total: told.append((done, total)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert 1 < server.most <= fetch.PARALLEL
    assert max(told) == (3_000_000, 3_000_000)


def test_one_that_fails_ends_all(servers: list[Server], tmp_path: Path) -> None:
    server = serve(servers, {})
    jobs = [Job((server.url(f"f{number}"),), tmp_path / f"f{number}", DIGEST) for number in range(200)]
    with pytest.raises(BuildError, match="is not there"):
        fetch.get_all(jobs)
    assert len(server.asked) < 200
    assert left(tmp_path) == []


def test_two_that_want_the_same_fetch_it_once(servers: list[Server], tmp_path: Path) -> None:
    server = serve(servers, {"a": DATA})
    threads = [threading.Thread(target=fetch.get, args=(job(tmp_path, server.url("a")),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.asked == [""]
    assert left(tmp_path) == ["file"]


def test_two_that_want_many_in_another_order_wait_for_each_other(servers: list[Server], tmp_path: Path) -> None:
    files = {f"f{number}": random.Random(number).randbytes(1000) for number in range(90)}
    server = serve(servers, files)
    server.delay = 0.01
    jobs = [
        Job((server.url(name),), tmp_path / name, Digest("sha1", hashlib.sha1(data).hexdigest()), len(data))
        for name, data in files.items()
    ]
    threads = [threading.Thread(target=fetch.get_all, args=(order,)) for order in (jobs, jobs[::-1], jobs[45:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert len(server.asked) == len(files)


def test_what_came_before_one_failed_stays(servers: list[Server], tmp_path: Path) -> None:
    server = serve(servers, {"a": DATA})
    jobs = [job(tmp_path, server.url("a")), Job((server.url("none"),), tmp_path / "none", DIGEST)]
    with pytest.raises(BuildError, match="is not there"):
        fetch.get_all(jobs)
    assert left(tmp_path) == ["file"]


def test_a_disk_that_fails_while_more_comes_is_told(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"f{number}": random.Random(number).randbytes(1000) for number in range(40)}
    server = serve(servers, files)
    jobs = [Job((server.url(name),), tmp_path / name, None, len(data)) for name, data in files.items()]

    def full(folder: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(parts, "_TOGETHER", 10)
    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch.get_all(jobs)
    # What did not get to the disk has not got its name.
    assert len([path for path in left(tmp_path) if not path.startswith(".")]) < 40
    monkeypatch.undo()
    fetch.get_all(jobs)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_redirect_is_followed(servers: list[Server], tmp_path: Path) -> None:
    far = serve(servers, {"a": DATA})
    near = serve(servers, {}, to={"b": far.url("a"), "c": "b", "d": "d"})
    assert fetch.get(job(tmp_path, near.url("c"))).read_bytes() == DATA
    with pytest.raises(BuildError, match="is redirected more than"):
        fetch.read([near.url("d")])


def test_what_the_environment_says_counts(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(servers, {"ttp://far.lab:81/a%20b?c": b"by proxy"})
    monkeypatch.setenv("http_proxy", proxy.url(""))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch.read(["http://u:p@far.lab:81/a b?c"])[1] == b"by proxy"
    assert proxy.headers[-1]["Authorization"] == "Basic dTpw"
    near = serve(servers, {"a": b"near"})
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.read([near.url("a")])[1] == b"near"
    assert near.headers[-1]["Authorization"] == "Basic bWU6c2VjcmV0"


def test_an_index_is_read(servers: list[Server]) -> None:
    server = serve(servers, {"a": b"text"})
    assert fetch.read([server.url("none"), server.url("a")]) == (server.url("a"), b"text")
    with pytest.raises(BuildError, match="has more than 3 bytes"):
        fetch.read([server.url("a")], limit=3)
    with pytest.raises(BuildError, match=r"nowhere\.invalid"):
        fetch.read(["http://nowhere.invalid/a"])
