"""HTTP as downloads need it: connections are used again, and what the environment says of a server is asked once.

`requests` knows the environment, and makes the pool of a server's connections; asking it for each of a repository's
files would take longer than the files do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

if TYPE_CHECKING:
    import requests.adapters
    import urllib3

CONNECTIONS = 8
"""Connections to a server at the same time."""

_TIMEOUT = (15, 60)
"""Seconds for a connection, and for the next bytes."""

_REDIRECTS = 20


class WrongError(Exception):
    """A server that can't be used, and why."""


class CutError(Exception):
    """A server that didn't answer, or not to the end, and why."""


@contextmanager
def answer(url: str, begun: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
    """What a server says to GET, from byte `begun` on; 200, 206 or 416. Raises WrongError and CutError."""
    import requests
    from urllib3.exceptions import HTTPError

    try:
        found = _answered(url, begun)
        try:
            if found.status == 404:
                raise WrongError("is not there (404)")
            if found.status >= 400 and found.status != 416:
                raise WrongError(f"the server refuses it ({found.status} {found.reason})")
            yield found
        finally:
            # To the pool where all was read; else it is of no more use.
            found.close()
            found.release_conn()
    except requests.RequestException as error:
        raise WrongError(str(error)) from None
    except HTTPError as error:
        raise CutError(_words(error)) from None


def _answered(url: str, begun: int) -> urllib3.BaseHTTPResponse:
    for _ in range(_REDIRECTS):
        parts = urlsplit(url)
        found = _server(parts.scheme, parts.netloc).get(parts, begun)
        to = found.get_redirect_location()
        if not to:
            return found
        found.drain_conn()
        found.release_conn()
        url = urljoin(url, to)
    raise WrongError(f"it is redirected more than {_REDIRECTS} times")


@dataclass(frozen=True)
class _Server:
    """Connections to a server.

    host    -- its name and port, where a proxy has to be told
    headers -- of each request, with name and password where it wants them
    """

    pool: urllib3.HTTPConnectionPool
    host: str | None
    headers: Mapping[str, str]

    def get(self, parts: SplitResult, begun: int) -> urllib3.BaseHTTPResponse:
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        return self.pool.urlopen(
            "GET",
            f"{parts.scheme}://{self.host}{path}" if self.host else path,
            headers={**self.headers, "Range": f"bytes={begun}-"} if begun else dict(self.headers),
            timeout=_timeout(),
            redirect=False,
            retries=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )


@functools.cache
def _timeout() -> urllib3.Timeout:
    import urllib3

    return urllib3.Timeout(*_TIMEOUT)


@functools.cache
def _adapter() -> requests.adapters.HTTPAdapter:
    import requests.adapters

    return requests.adapters.HTTPAdapter(pool_connections=4 * CONNECTIONS, pool_maxsize=CONNECTIONS)


@functools.cache
def _server(scheme: str, netloc: str) -> _Server:
    """What the environment says of a server: proxies, certificates, a name and a password of ~/.netrc."""
    import requests
    import urllib3

    url = f"{scheme}://{netloc}/"
    said = requests.Session().merge_environment_settings(url, {}, None, None, None)
    headers = {"User-Agent": "netboot-pipeline", "Accept-Encoding": "identity"}
    asked = requests.Request("GET", url, headers, auth=requests.utils.get_netrc_auth(url)).prepare()
    adapter = _adapter()
    verify = requests.utils.DEFAULT_CA_BUNDLE_PATH if said["verify"] is True else said["verify"]
    if scheme == "https" and isinstance(verify, str) and not os.path.exists(verify):
        raise WrongError(f"the environment names {verify} for certificates, which is not there")
    pool = adapter.get_connection_with_tls_context(asked, verify, said["proxies"], said["cert"])
    assert isinstance(pool, urllib3.HTTPConnectionPool)
    by_proxy = adapter.request_url(asked, said["proxies"]) != asked.path_url
    return _Server(pool, netloc.rpartition("@")[2] if by_proxy else None, asked.headers)


def _words(error: Exception) -> str:
    """Why, without Python's names of things."""
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return "its certificate can't be trusted"
    if isinstance(error, exceptions.TimeoutError) and not isinstance(error, exceptions.NewConnectionError):
        return "did not answer in time"
    text = str(error)
    for part in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if part in text:
            return part
    if isinstance(error, exceptions.ProtocolError):
        return "the connection was cut"
    return text.rpartition(": ")[2] or text
