"""nginx: a server block for `/etc/nginx/conf.d`."""

from __future__ import annotations

from pathlib import Path

from buildlib.services import Wiring, sayable

FILE = "netboot.conf"
TOOL = "nginx"

# By name, and not by address: a `listen` without one also starts before the network is up, and leaves the port to
# other servers for other names. disable_symlinks: what is published is a link to a release. types: a boot loader
# looks at no type, and a kernel's or image's name has no ending that means something.
_SERVER = """\
# Target {name}.
server {{
    listen {port};
    server_name {address};
    root {root};
    autoindex off;
    sendfile on;
    tcp_nopush on;
    disable_symlinks off;
    types {{ }}
    default_type application/octet-stream;
}}
"""

_WRAPPER = """\
pid nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {path};
}}
"""

_CHECK = """
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && printf %s "$1" >"$folder/nginx.conf" || exit
nginx -t -q -p "$folder" -c "$folder/nginx.conf" -e stderr
"""


def render(wiring: Wiring) -> str | None:
    http = wiring.target.http
    if http is None:
        return None
    return _SERVER.format(name=wiring.name, port=http.port, address=wiring.target.address, root=_quoted(http.path))


def check(path: Path) -> list[str] | None:
    """nginx checks whole configurations only, so it gets one that includes `path`."""
    return ["sh", "-c", _CHECK, "sh", wrapper(path)]


def wrapper(path: Path) -> str:
    """The smallest whole configuration with `path` in it; what nginx writes lands in its prefix."""
    return _WRAPPER.format(path=_quoted(str(path.absolute())))


def _quoted(path: str) -> str:
    """In quotes a dollar is still a variable's, and nothing takes that from it."""
    return '"' + sayable("nginx", path, "$").replace("\\", "\\\\").replace('"', '\\"') + '"'
