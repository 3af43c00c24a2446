"""Scripts on other machines against real SSH servers: what works, and what each failure says."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildlib import ssh
from buildlib.errors import BuildError
from buildlib.route import Route, program, route
from buildlib.shell import LocalShell, Shell, quote, wrap
from tests import sshlab
from tests.sshlab import Box

pytestmark = [pytest.mark.integration, sshlab.needed]

KINDS = ("this machine", "openssh", "user", "busybox")


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No library's traceback or log reaches the user."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def box() -> Iterator[Box]:
    with sshlab.box("openssh") as made:
        yield made


@pytest.fixture(scope="module", params=KINDS)
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Root's shell on each kind of machine."""
    if request.param == "this machine":
        yield LocalShell()
        return
    with sshlab.box(request.param) as made:
        connection = ssh.connect(way(made), sudo=request.param == "user")
        yield connection
        connection.close()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """An agent, and what gives it a key."""
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    while not path.exists():
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))

    def add(key: Path) -> None:
        tool("ssh-add", "-q", str(key))

    yield add
    process.kill()
    process.wait()


def tool(*line: str) -> str:
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def way(box: Box, *lines: str) -> Route:
    """To a box; lines of the client's configuration come before those of the box, and count more."""
    path = box.state / f"config{len(list(box.state.glob('config*')))}"
    path.write_text("".join(f"{line}\n" for line in ("Host *", *lines)) + box.config.read_text())
    return route(box.name, path)


def alone(box: Box, *lines: str) -> Route:
    """To a box, by the keys of these lines only."""
    path = box.state / "alone"
    text = re.sub(".*Identit.*\n", "", box.config.read_text())
    path.write_text(text + "".join(f"  {line}\n" for line in lines))
    return route(box.name, path)


def fails(to: Route, *, sudo: bool = False, timeout: float = 15) -> BuildError:
    with pytest.raises(BuildError) as caught:
        ssh.connect(to, sudo=sudo, timeout=timeout).close()
    assert "\n" not in caught.value.message
    return caught.value


def key(path: Path, phrase: str = "") -> Path:
    tool("ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(path))
    return path


def print_of(path: Path) -> str:
    return tool("ssh-keygen", "-lf", str(path)).split()[1]


# Scripts


def test_output_errors_and_status_are_apart(shell: Shell) -> None:
    answer = shell.run("id -u\necho wrong >&2\ncat\nexit 3")
    assert (answer.status, answer.out, answer.err) == (3, b"0\n", "wrong\n")


def test_the_status_is_that_of_the_last_command(shell: Shell) -> None:
    assert [shell.run(script).status for script in ("true", "false", "sh -c 'exit 7'", "set -e; false; true")] == [
        0,
        1,
        7,
        1,
    ]


def test_names_are_bytes(shell: Shell) -> None:
    name = "a'b \"\\\n\udcff$x"
    assert shell.run(f"printf %s {quote(name)}").out == name.encode(errors="surrogateescape")


def test_both_outputs_may_be_big(shell: Shell) -> None:
    answer = shell.run("head -c 9000000 /dev/zero | tr '\\0' e >&2; head -c 9000000 /dev/zero")
    assert (len(answer.out), len(answer.err)) == (9_000_000, 9_000_000)


def test_a_script_may_be_big(shell: Shell) -> None:
    words = " ".join(f"name{number}" for number in range(2000))
    assert shell.run(f"n=0\nadd() {{ n=$((n + $#)); }}\n{f'add {words}{chr(10)}' * 100}echo $n").out == b"200000\n"


@pytest.mark.parametrize("program", [["dash"], ["busybox", "sh"], ["bash", "--posix"]])
def test_a_truncated_script_does_nothing(program: list[str]) -> None:
    """Or all, where just its last line is incomplete."""
    text = wrap("echo one\nif true; then echo two; fi\n", empty=True)
    seen = set()
    for length in range(len(text) + 1):
        line = subprocess.run(program, input=text[:length], capture_output=True, check=False)
        seen.add(line.stdout)
    assert seen == {b"", b"one\ntwo\n"}


def test_a_held_script_answers_what_it_gets(shell: Shell) -> None:
    held = shell.hold('echo a\necho b\necho done\nwhile read -r line; do echo "<$line>"; done\nexit 4')
    assert held.until(b"done") == b"a\nb\n"
    assert shell.run("echo beside").out == b"beside\n"
    held.beat()
    assert held.until(b"<>") == b""
    held.send(b"x\ndone\n")
    answer = held.end()
    assert (answer.status, answer.out) == (4, b"<x>\n<done>\n")
    assert held.end() == answer


def test_a_held_script_takes_data_as_it_is(shell: Shell) -> None:
    data = os.urandom(3_000_000) + b"\nrm -rf x\n"
    held = shell.hold("echo ready\ncat")
    held.until(b"ready")
    threading.Thread(target=held.send, args=(data,), daemon=True).start()
    received = held.until(b"rm -rf x")
    assert received + b"rm -rf x\n" == data
    assert held.end().status == 0


def test_what_follows_a_script_that_ended_is_no_command(shell: Shell) -> None:
    held = shell.hold("echo ready\nread -r line\necho $line")
    held.until(b"ready")
    held.send(b"word\necho more\n")
    assert held.end().out == b"word\n"


def test_a_held_script_that_ends_too_early_says_why(shell: Shell) -> None:
    held = shell.hold("echo a\necho 'no space' >&2\nexit 5")
    with pytest.raises(BuildError, match="no space"):
        held.until(b"ready")
    answer = held.end()
    assert (answer.status, answer.out) == (5, b"a\n")


def test_a_held_script_outlives_the_thread_that_started_it(shell: Shell) -> None:
    found = []

    def hold() -> None:
        held = shell.hold("echo ready\nread -r line\necho lives")
        held.until(b"ready")
        found.append(held)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert shell.run("sleep 0.2 2>/dev/null || sleep 1").status == 0
    found[0].beat()
    assert found[0].end().out == b"lives\n"


def test_several_threads_use_one_shell(shell: Shell) -> None:
    found: dict[int, bytes] = {}

    def run(number: int) -> None:
        found[number] = shell.run(f"head -c 300000 /dev/zero | wc -c; echo {number}").out

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"300000\n{number}\n".encode() for number in range(8)}


# What becomes of a connection


@pytest.mark.parametrize("kind", ["openssh", "busybox"])
def test_a_shell_that_is_killed(kind: str) -> None:
    with sshlab.box(kind) as box:
        connection = ssh.connect(way(box))
        held = connection.hold("echo ready\nread -r line")
        held.until(b"ready")
        kill = threading.Timer(0.3, box.kill_shells)
        kill.start()
        with pytest.raises(BuildError, match=f"root@{box.address}: the shell was killed there"):
            connection.run("sleep 100")
        kill.join()
        with pytest.raises(BuildError, match="killed"):
            held.until(b"x")
        assert held.end().status < 0
        assert connection.run("echo more").out == b"more\n"
        connection.close()


def test_a_connection_that_is_cut(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "BEAT", 0.2)
    connection = ssh.connect(way(box))
    held = connection.hold("echo ready\nread -r line")
    held.until(b"ready")
    box.cut()
    with pytest.raises(BuildError, match=f"root@{box.address}: the connection was lost"):
        connection.run("sleep 100")
    answer = held.end()
    assert answer.status < 0 and "the connection was lost" in answer.err
    with pytest.raises(BuildError, match="lost"):
        held.beat()
    with pytest.raises(BuildError, match="lost"):
        connection.hold("true")
    connection.close()
    box.mend()
    again = ssh.connect(way(box))
    assert again.run("echo back").out == b"back\n"
    again.close()


def test_a_quiet_connection_lives(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "BEAT", 0.1)
    connection = ssh.connect(way(box))
    assert connection.run("sleep 2; echo on").out == b"on\n"
    connection.close()


# Reaching it


def test_a_name_that_does_not_resolve() -> None:
    assert "the name nowhere.invalid does not resolve" in fails(route("root@nowhere.invalid")).message


def test_nothing_listens(box: Box) -> None:
    assert f"{box.address} port 23 refuses connections" in fails(way(box, "Port 23")).message


def test_nothing_answers(box: Box) -> None:
    box.cut(silent=True)
    assert f"{box.address} port 22 does not answer within 1 s" in fails(way(box), timeout=1).message


def test_no_way_there(box: Box) -> None:
    box.cut()
    error = fails(way(box))
    assert f"{box.name}: no way to {box.address} port 22: No route to host" in error.message


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_no_ssh_server(says: bytes | None) -> None:
    """What says something else, hangs up, or says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            client, _ = server.accept()
            kept.append(client)
            if says is not None:
                client.sendall(says)
                client.close()

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        error = fails(route(f"root@127.0.0.1:{port}"), timeout=1)
        assert f"what answers at 127.0.0.1 port {port} is no SSH server" in error.message
        for client in kept:
            client.close()


# Host keys


def test_an_unknown_host_key(box: Box) -> None:
    box.known_hosts.write_text("")
    to = way(box)
    error = fails(to)
    assert "is not known" in error.message and "nothing was sent" in error.message
    assert print_of(box.state / "host_ed25519.pub") in error.message
    assert error.hint and f"ssh -F {to.config} -p 22 {box.name}" in error.hint
    assert "for root" not in box.log


def test_a_changed_host_key(box: Box) -> None:
    old = print_of(box.state / "host_ed25519.pub")
    box.rekey()
    error = fails(way(box))
    assert "changed" in error.message and "nothing was sent" in error.message
    assert f"was {old}" in error.message and f"is {print_of(box.state / 'host_ed25519.pub')}" in error.message
    assert error.hint and str(box.known_hosts) in error.hint
    assert "for root" not in box.log


def test_a_revoked_host_key(box: Box) -> None:
    lines = box.known_hosts.read_text()
    box.known_hosts.write_text(lines + "".join(f"@revoked {line}\n" for line in lines.splitlines()))
    assert re.search(f"revoked by {box.known_hosts}:[34]; nothing was sent", fails(way(box)).message)


@pytest.mark.parametrize(
    "form",
    [
        "plain",
        "hashed",
        "pattern",
        "not",
        "another kind",
        "second file",
        "blank",
        "alias",
        "port",
        "garbage",
        "authority",
    ],
)
def test_host_keys_are_known_as_ssh_knows_them(form: str, box: Box, tmp_path: Path) -> None:
    first, second = box.known_hosts.read_text().splitlines()
    _, kind, data = first.split()
    path, options = tmp_path / "known", []
    if form == "plain":
        path.write_text(f"{first}\n{second}\n")
    elif form == "hashed":
        path.write_text(f"{first}\n{second}\n")
        tool("ssh-keygen", "-H", "-f", str(path))
        assert box.address not in path.read_text()
    elif form == "pattern":
        path.write_text(f"198.1?.* {kind} {data}\n")
    elif form == "not":
        path.write_text(f"198.1?.*,!{box.address} {kind} {data}\n")
    elif form == "another kind":
        path.write_text(f"{second if 'ed25519' in second else first}\n")
    elif form == "second file":
        options.append(f"UserKnownHostsFile {tmp_path}/none {path}")
        path.write_text(f"{first}\n")
    elif form == "blank":
        path = tmp_path / "a b"
        options.append(f'UserKnownHostsFile "{path}"')
        path.write_text(f"{first}\n")
    elif form == "alias":
        path.write_text(f"somebody {kind} {data}\n")
        options.append("HostKeyAlias somebody")
    elif form == "port":
        path.write_text(f"[{box.address}]:22 {kind} {data}\n")
    elif form == "garbage":
        path.write_text(f"x\n# y\n\n{box.address} {kind} !!\n")
    else:
        path.write_text(f"@cert-authority {first}\n")
    to = way(box, *options, f"UserKnownHostsFile {path}")
    accepted = subprocess.run([*program(to), "true"], capture_output=True, check=False).returncode == 0
    assert accepted == (form not in ("not", "garbage", "authority", "port"))
    if accepted:
        ssh.connect(to).close()
    else:
        assert "nothing was sent" in fails(to).message


# Keys


def test_a_key_that_is_refused(box: Box, tmp_path: Path) -> None:
    other = key(tmp_path / "other")
    error = fails(alone(box, f"IdentityFile {other}", "IdentitiesOnly yes"))
    assert f"root@{box.address} accepts none of our keys" in error.message and str(other) in error.message
    assert error.hint and "authorized_keys" in error.hint


def test_a_key_file_that_is_missing(box: Box) -> None:
    error = fails(alone(box, "IdentityFile /nowhere/key", "IdentitiesOnly yes"))
    assert "/nowhere/key (is not there)" in error.message


def test_a_key_file_that_is_none(box: Box, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hello\n")
    error = fails(alone(box, f"IdentityFile {tmp_path}/key", "IdentitiesOnly yes"))
    assert f"{tmp_path}/key (it is no private key)" in error.message


@pytest.mark.parametrize("form", ["RFC4716", "PEM", "PKCS8"])
def test_a_key_with_a_passphrase(form: str, box: Box) -> None:
    path = box.state / "locked"
    tool("ssh-keygen", "-q", "-t", "ecdsa", "-m", form, "-N", "secret", "-f", str(path))
    error = fails(alone(box, f"IdentityFile {path}", "IdentitiesOnly yes"))
    assert f"{path} (it has a passphrase, and no agent has it)" in error.message


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("server", ["openssh", "busybox"])
def test_kinds_of_keys(kind: str, server: str, tmp_path: Path) -> None:
    with sshlab.box(server) as box:
        path = tmp_path / "key"
        tool("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path))
        for file in (box.state / "authorized", box.state / "root/root/.ssh/authorized_keys"):
            if file.exists():
                shutil.copy(f"{path}.pub", file)
        ssh.connect(alone(box, f"IdentityFile {path}", "IdentitiesOnly yes")).close()


@pytest.mark.parametrize("named", ["by its file", "without the public file", "by the public file", "not at all"])
def test_a_key_that_an_agent_has(named: str, box: Box, agent: Callable[[Path], None], tmp_path: Path) -> None:
    agent(key(tmp_path / "other"))
    agent(box.key)
    tool("ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(box.key))
    lines = [f"IdentityFile {box.key}", "IdentitiesOnly yes"]
    if named == "without the public file":
        Path(f"{box.key}.pub").unlink()
    elif named == "by the public file":
        box.key.unlink()
        lines[0] += ".pub"
    elif named == "not at all":
        box.key.unlink()
        lines = []
    to = alone(box, *lines)
    tool(*program(to), "true")
    ssh.connect(to).close()


def test_an_agent_of_many_keys(box: Box, agent: Callable[[Path], None], tmp_path: Path) -> None:
    for number in range(8):
        agent(key(tmp_path / f"key{number}"))
    error = fails(alone(box))
    assert f"root@{box.address} hung up after" in error.message
    assert error.hint and "IdentitiesOnly" in error.hint


def test_an_agent_that_is_gone(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    ssh.connect(way(box)).close()


def test_several_connect_at_once_by_one_agent(box: Box, agent: Callable[[Path], None]) -> None:
    """As the machines of a target do."""
    agent(box.key)
    box.key.unlink()
    to = alone(box)
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            for _ in range(5):
                ssh.connect(to).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=connect) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_server_that_wants_more_than_a_key(box: Box) -> None:
    config = box.state / "sshd_config"
    config.write_text(config.read_text().replace("Methods publickey", "Methods publickey,publickey"))
    box.rekey()
    box.known_hosts.write_text(f"{box.address} {(box.state / 'host_ed25519.pub').read_text()}")
    assert f"root@{box.address} wants publickey beside the key {box.key}" in fails(way(box)).message


# Jump hosts


@pytest.fixture
def jump() -> Iterator[Box]:
    with sshlab.box("openssh") as made:
        yield made


def behind(box: Box, jump: Box, *lines: str, through: str | None = None) -> Route:
    """To a box by a jump host."""
    path = box.state / "behind"
    texts = [*lines, f"Host {box.name}", through or f"ProxyJump {jump.name}"]
    path.write_text("\n".join([*texts, box.config.read_text(), jump.config.read_text()]))
    return route(box.name, path)


def test_by_a_jump_host(box: Box, jump: Box) -> None:
    to = behind(box, jump)
    assert [hop.destination for hop in to.jumps] == [jump.name]
    connection = ssh.connect(to)
    assert connection.where == f"root@{box.address}"
    answer = connection.run("echo $SSH_CONNECTION; head -c 5000000 /dev/zero")
    assert answer.out.startswith(f"{jump.address} ".encode()) and len(answer.out) > 5_000_000
    connection.close()
    assert tool(*program(to), "echo $SSH_CONNECTION").startswith(f"{jump.address} ")


def test_by_two_jump_hosts(box: Box, jump: Box) -> None:
    with sshlab.box("busybox") as middle:
        path = box.state / "behind"
        texts = [f"Host {box.name}", f"ProxyJump {jump.name},{middle.name}"]
        path.write_text("\n".join([*texts, *(each.config.read_text() for each in (box, jump, middle))]))
        to = route(box.name, path)
        assert [hop.destination for hop in to.jumps] == [jump.name, middle.name]
        connection = ssh.connect(to)
        assert connection.run("echo $SSH_CONNECTION").out.startswith(f"{middle.address} ".encode())
        connection.close()


def test_by_a_program(box: Box, jump: Box) -> None:
    connection = ssh.connect(behind(box, jump, through=f"ProxyCommand ssh -F {jump.config} -W %h:%p {jump.name}"))
    answer = connection.run("echo $SSH_CONNECTION; head -c 5000000 /dev/zero")
    assert answer.out.startswith(f"{jump.address} ".encode()) and len(answer.out) > 5_000_000
    connection.close()


def test_by_a_program_that_fails(box: Box, jump: Box) -> None:
    to = behind(box, jump, through="ProxyCommand echo 'the way is closed' >&2; exit 1")
    assert f"{box.name}: its ProxyCommand says: the way is closed" in fails(to).message


def test_a_jump_host_that_is_not_there(box: Box, jump: Box) -> None:
    jump.cut()
    assert f"{box.name}: jump host {jump.name}: no way to {jump.address}" in fails(behind(box, jump)).message


def test_a_jump_host_whose_key_is_unknown(box: Box, jump: Box) -> None:
    jump.known_hosts.write_text("")
    error = fails(behind(box, jump))
    assert f"{box.name}: jump host {jump.name}: host key of {jump.address} is not known" in error.message
    assert error.hint and error.hint.endswith(jump.name)


def test_a_jump_host_that_refuses_our_key(box: Box, jump: Box) -> None:
    (jump.state / "authorized").write_text("")
    error = fails(behind(box, jump))
    assert f"{box.name}: jump host {jump.name}: root@{jump.address} accepts none of our keys" in error.message


def test_a_host_that_its_jump_host_does_not_reach(box: Box, jump: Box) -> None:
    error = fails(behind(box, jump, through=f"ProxyJump {jump.name}\nPort 23"))
    assert f"{box.name}: {box.address} port 23 is not reached: the jump host has no way there" in error.message


def test_a_jump_host_that_forbids_it(box: Box, jump: Box) -> None:
    public = (jump.state / "authorized").read_text()
    (jump.state / "authorized").write_text(f"no-port-forwarding {public}")
    assert "the jump host forbids to go on" in fails(behind(box, jump)).message


def test_a_host_behind_that_has_gone(box: Box, jump: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection to the jump host stands."""
    monkeypatch.setattr(ssh, "BEAT", 0.2)
    connection = ssh.connect(behind(box, jump))
    box.cut()
    with pytest.raises(BuildError, match=f"root@{box.address}: the connection was lost"):
        connection.run("sleep 100")
    connection.close()


def test_jump_hosts_in_a_circle(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\nProxyJump b\nHost b\nProxyJump a\n")
    with pytest.raises(BuildError, match="circle"):
        route("a", config)


def test_a_jump_host_for_all_hosts_is_as_wrong_as_ssh_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\nProxyJump gate\n")
    with pytest.raises(BuildError, match="gate: ssh does not take its configuration: jumphost loop"):
        route("a", config)


# What runs there


def test_threads_use_a_connection_at_the_same_time(shell: Shell) -> None:
    """Of each script its own output comes; with what several of them say and end at once, servers end connections."""
    wrong: list[object] = []

    def run(thread: int) -> None:
        for number in range(40):
            answer = shell.run(f"echo {thread} {number}; exit {number}")
            if (answer.status, answer.out) != (number, f"{thread} {number}\n".encode()):
                wrong.append((thread, number, answer))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("password", "sudo wants a password of pusher"),
        ("other", "sudo wants a password of pusher"),
        ("nobody", "sudo wants a password of pusher"),
        ("not sh", "sudo does not let pusher run sh as root"),
        ("terminal", "sudo wants a terminal"),
    ],
)
def test_sudo_that_does_not_let_us(variant: str, says: str) -> None:
    with sshlab.box("user", sudo=variant) as box:
        error = fails(way(box), sudo=True)
        assert error.message == f"{box.name}: pusher@{box.address}: {says}"
        assert error.hint and "by visudo there" in error.hint
        connection = ssh.connect(way(box))
        assert connection.run("id -un").out == b"pusher\n"
        connection.close()


def test_no_sudo_there() -> None:
    with sshlab.box("busybox") as box:
        error = fails(way(box), sudo=True)
        assert error.message == f"{box.name}: root@{box.address}: there is no sudo"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("echo for backups only", "no shell runs there: for backups only"),
        ("exit 9", "no shell runs there: exit status 9"),
        ('echo Welcome; eval \\"$SSH_ORIGINAL_COMMAND\\"', "its shell writes 'Welcome' before anything is run"),
    ],
)
def test_a_login_that_is_no_plain_shell(line: str, says: str, box: Box) -> None:
    public = (box.state / "authorized").read_text()
    (box.state / "authorized").write_text(f'command="{line}" {public}')
    assert says in fails(way(box)).message


# Routes


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "-oProxyCommand=x",
        "a b",
        "root@-x",
        "-x@a",
        "a;b",
        "$(x)",
        "a\nb",
        "a:0",
        "a:99999",
        "é",
        "`x`@a",
        "a/b",
        "[::1",
    ],
)
def test_what_is_no_destination(destination: str) -> None:
    with pytest.raises(BuildError, match="no SSH destination"):
        route(destination)


@pytest.mark.parametrize(
    ("destination", "user", "host", "port"),
    [
        ("me@a", "me", "a", 22),
        ("me@a:24", "me", "a", 24),
        ("me@[::1]:24", "me", "::1", 24),
        ("me@::1", "me", "::1", 22),
        ("boot", "you", "10.0.0.1", 2222),
        ("me@boot:24", "me", "10.0.0.1", 24),
    ],
)
def test_destinations(destination: str, user: str, host: str, port: int, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host boot\nHostName 10.0.0.1\nUser you\nPort 2222\n")
    found = route(destination, config)
    assert (found.user, found.host, found.port) == (user, host, port)


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Nonsense yes\n")
    with pytest.raises(BuildError, match=r"a: ssh does not take its configuration: .*nonsense"):
        route("a", tmp_path / "config")
    with pytest.raises(BuildError, match="no such file"):
        route("a", tmp_path / "other")


def test_the_program_asks_nothing_and_runs_what_it_is_told(box: Box) -> None:
    to = way(box, "RemoteCommand echo theirs", "RequestTTY force")
    line = program(to)
    assert line[0] == "ssh" and line[-1] == box.name
    assert tool(*line, "echo ours") == "ours\n"
    box.known_hosts.write_text("")
    assert subprocess.run([*line, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 255
