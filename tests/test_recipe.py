"""Recipes as users write them: every mistake is found before a build, and said where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from buildlib import distros, recipe, schemas, site
from buildlib.house import House
from buildlib.recipe import Clients, Recipe, RootKind
from buildlib.schema import SchemaError

CHECKOUT = Path(__file__).parents[1]
DEBIAN = "debian: {suite: bookworm}\n"


def write(folder: Path, text: str, name: str = "one") -> Path:
    """A recipe beside the files that it may name."""
    home = folder / "recipes" / name
    for path, content in {
        "keys/ops.pub": "ssh-ed25519 AAAA ops\n",
        "keys/ops": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        "hooks/good": "#!/bin/sh\n",
        "hooks/plain": "#!/bin/sh\n",
        "overlay/etc/motd": "hello\n",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(content)
    (home / "hooks/good").chmod(0o755)
    (home / recipe.FILE).write_text(text)
    return home


def load(folder: Path, text: str) -> Recipe:
    return recipe.load(write(folder, text), distros.sections())


def findings(folder: Path, text: str) -> list[str]:
    """`line:column: message` of all that is wrong with a recipe."""
    with pytest.raises(SchemaError) as caught:
        load(folder, text)
    return [f"{found.line}:{found.column}: {found.message}" for found in caught.value.findings]


class Wrong(NamedTuple):
    """Lines of a recipe that starts with `arch: amd64`, and what is found."""

    text: str
    found: str
    debian: str = DEBIAN


WRONG = {
    "rw with squashfs": Wrong(
        "root: squashfs\nclients: rw\n",
        "3:10: clients can't own a root that is squashfs; only `root: nfs` can be rw",
    ),
    "rw with ram": Wrong(
        "root: ram\nclients: rw\n", "3:10: clients can't own a root that is ram; only `root: nfs` can be rw"
    ),
    "persist with rw": Wrong(
        "clients: rw\npersist: [/srv]\n", "3:10: an rw root keeps everything; `persist` is for volatile clients"
    ),
    "persist inside persist": Wrong("persist: [/srv/a, /srv]\n", "2:11: /srv/a is kept already, below /srv"),
    "persist of the root": Wrong(
        "persist: [/]\n", "2:11: expects an absolute path of the image like '/var/lib/kubelet', found '/'"
    ),
    "persist with dots": Wrong(
        "persist: [/srv/../etc]\n",
        "2:11: expects an absolute path of the image like '/var/lib/kubelet', found '/srv/../etc'",
    ),
    "over with nfs": Wrong("root: {kind: nfs, over: nfs}\n", "2:25: only a squashfs can choose"),
    "unknown kind of root": Wrong(
        "root: squash\n", "2:7: expects one of 'nfs', 'squashfs', 'ram', found 'squash' (did you mean 'squashfs'?)"
    ),
    "size without unit": Wrong("root: {kind: ram, size: 2 GB}\n", "2:25: expects a size like '50%', found '2 GB'"),
    "description of two lines": Wrong("description: |\n  one\n  two\n", "2:14: expects a single line"),
    "cmdline of two lines": Wrong("cmdline: |\n  one\n  two\n", "2:10: expects a single line of ASCII"),
    "user twice": Wrong("users: [{name: ops}, {name: ada}, {name: ops}]\n", "2:42: user ops is there twice"),
    "user without name": Wrong("users: [{sudo: yes}]\n", "2:9: missing key 'name'"),
    "user name": Wrong("users: [{name: Ops}]\n", "2:16: expects a user or group name like 'ops', found 'Ops'"),
    "uid": Wrong(
        "users: [{name: ops, uid: 70000}]\n", "2:26: expects a whole number from 0 up to 60000, found '70000'"
    ),
    "private key": Wrong(
        "users:\n  - name: ops\n    authorized-keys: [keys/ops.pub, keys/ops]\n",
        "4:37: ops is a private key; name the public one",
    ),
    "missing key file": Wrong(
        "users: [{name: ops, authorized-keys: [keys/none.pub]}]\n",
        "2:39: expects a file, but there is no '{home}/keys/none.pub'",
    ),
    "two passwords": Wrong(
        "users: [{name: ops, password-env: A, password-file: b}]\n",
        "2:9: says one of `password-file` and `password-env`",
    ),
    "password in the recipe": Wrong(
        "users: [{name: ops, password: hunter2}]\n",
        "2:21: unknown key 'password' (did you mean 'password-env'?)",
    ),
    "password for the variable that has it": Wrong(
        "users: [{name: ops, password-env: hunter2}]\n",
        "2:35: expects a variable like 'ADMIN_PASSWORD', found something else",
    ),
    "hook that is not executable": Wrong(
        "hooks: [hooks/good, hooks/plain]\n", "2:21: plain is not executable; chmod +x plain"
    ),
    "hook that is missing": Wrong("hooks: [hooks/none]\n", "2:9: expects a file, but there is no '{home}/hooks/none'"),
    "overlay that is a file": Wrong(
        "overlay: [hooks/good]\n", "2:11: expects a folder, but '{home}/hooks/good' is none"
    ),
    "overlay of another folder": Wrong(
        "overlay: [../../../elsewhere]\n", "2:11: '../../../elsewhere' leads out of '{recipes}'"
    ),
    "owner of nothing": Wrong("owners: [{path: /etc/motd}]\n", "2:10: states neither owner nor mode"),
    "mode": Wrong(
        "owners: [{path: /etc/motd, mode: '0888'}]\n", "2:34: expects an octal mode like '0640', found '0888'"
    ),
    "unit": Wrong("services: {enable: [a b]}\n", "2:21: expects a systemd unit like 'ssh.service', found 'a b'"),
    "misspelt key": Wrong("ovrelay: [overlay]\n", "2:1: unknown key 'ovrelay' (did you mean 'overlay'?)"),
    "no distribution": Wrong(
        "", "1:1: no distribution; a recipe has one section of: alpine, archlinux, debian, nixos", debian=""
    ),
    "no suite": Wrong("", "2:9: missing key 'suite'", debian="debian: {}\n"),
    "stable": Wrong(
        "",
        "2:17: stable is another suite every few years; name it by its code name, like bookworm",
        debian="debian: {suite: stable}\n",
    ),
    "misspelt key of the section": Wrong(
        "",
        "2:27: unknown key 'varient' (did you mean 'variant'?)",
        debian="debian: {suite: bookworm, varient: minbase}\n",
    ),
    "components without main": Wrong(
        "",
        "2:39: `main` is missing: nothing installs without it",
        debian="debian: {suite: bookworm, components: [contrib]}\n",
    ),
    "package in two groups": Wrong(
        "",
        "2:70: less is in package-groups.a already; a package belongs to one group",
        debian="debian: {suite: bookworm, package-groups: {a: [less, vim], b: [nano, less=1.0]}}\n",
    ),
    "package in a group and the packages": Wrong(
        "",
        "2:66: less is in packages already; a package belongs to one group",
        debian="debian: {suite: bookworm, packages: [less], package-groups: {a: [less/bookworm]}}\n",
    ),
    "empty group": Wrong(
        "",
        "2:47: has no packages: name some, or leave the group out",
        debian="debian: {suite: bookworm, package-groups: {a: []}}\n",
    ),
    "name of a group": Wrong(
        "",
        "2:44: expects a group's name like 'tools', found 'My tools'",
        debian="debian: {suite: bookworm, package-groups: {My tools: [less]}}\n",
    ),
    "too many groups": Wrong(
        "",
        "2:43: 9 groups; a root can have 8",
        debian=f"debian: {{suite: bookworm, package-groups: {{{', '.join(f'g{n}: [p{n}]' for n in range(9))}}}}}\n",
    ),
    "dracut": Wrong(
        "",
        "2:38: dracut would replace initramfs-tools, which makes the initrd here",
        debian="debian: {suite: bookworm, packages: [dracut]}\n",
    ),
    "security mirror alone": Wrong(
        "",
        "2:44: goes with `mirror`, which is missing",
        debian="debian: {suite: bookworm, security-mirror: http://apt.lab/s}\n",
    ),
    "mirror without scheme": Wrong(
        "",
        "2:35: expects a URL like 'http://apt.lab/debian', found 'apt.lab/debian'",
        debian="debian: {suite: bookworm, mirror: apt.lab/debian}\n",
    ),
    "snapshot": Wrong(
        "",
        "2:37: expects a time like '20261101T000000Z', found 'yesterday'",
        debian="debian: {suite: bookworm, snapshot: yesterday}\n",
    ),
    "Ubuntu as a squashfs": Wrong(
        "root: squashfs\n",
        "2:7: Ubuntu has no live-boot; take `root: nfs` or `root: ram`",
        debian="debian: {suite: noble}\n",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe(case: str, tmp_path: Path) -> None:
    wrong = WRONG[case]
    places = {"home": str(tmp_path / "recipes/one"), "recipes": str(tmp_path / "recipes")}
    text = f"arch: amd64\n{wrong.text}{wrong.debian}"
    expected = wrong.found
    for name, path in places.items():
        expected = expected.replace(f"{{{name}}}", path)
    assert findings(tmp_path, text) == [expected]


@pytest.mark.parametrize("word", ["bokworm", "12", "no"])
def test_an_unknown_suite_is_told_those_that_are_known(word: str, tmp_path: Path) -> None:
    (found,) = findings(tmp_path, f"arch: amd64\ndebian: {{suite: {word}}}\n")
    assert found.startswith(f"2:17: unknown suite {word!r}; known: bullseye, bookworm, ")


@pytest.mark.parametrize("word", ["i386", "x86", "AMD64"])
def test_an_unknown_architecture(word: str, tmp_path: Path) -> None:
    assert findings(tmp_path, f"arch: {word}\n{DEBIAN}") == [
        f"1:7: unknown architecture {word!r}; known: amd64 (x86_64), arm64 (aarch64)"
    ]


def test_a_missing_architecture(tmp_path: Path) -> None:
    assert findings(tmp_path, DEBIAN) == ["1:1: missing key 'arch'"]


def test_all_mistakes_are_found_at_once(tmp_path: Path) -> None:
    text = "arch: i386\nclients: wr\npersist: [srv]\ndebian: {suite: stable, engine: apt}\n"
    places = [found.split(" ")[0] for found in findings(tmp_path, text)]
    assert places == ["1:7:", "2:10:", "3:11:", "4:17:", "4:33:"]


@pytest.mark.parametrize("key", ["password", "password-env"])
@pytest.mark.parametrize("word", ["hunter2", "$hunter2", "$6$hunter2 ", "hunter2$6$"])
def test_no_message_holds_a_password(key: str, word: str, tmp_path: Path) -> None:
    text = f"arch: amd64\n{DEBIAN}users: [{{name: ops, {key}: '{word}'}}]\n"
    assert "hunter2" not in "".join(findings(tmp_path, text))


@pytest.mark.parametrize("form", ["[hunter2, again]", "{hunter2: x}"])
def test_no_message_holds_a_password_in_another_form(form: str, tmp_path: Path) -> None:
    text = f"arch: amd64\n{DEBIAN}users: [{{name: ops, password-env: {form}}}]\n"
    assert "hunter2" not in "".join(findings(tmp_path, text))


def test_two_distributions(tmp_path: Path) -> None:
    name, kind, validate = next(one for one in distros.sections() if one[0] == "debian")
    sections = ((name, kind, validate), ("other", kind, validate))
    home = write(tmp_path, f"arch: amd64\n{DEBIAN}other: {{suite: bookworm}}\n")
    with pytest.raises(SchemaError, match=r":3:8: several distributions: debian, other; a recipe has one section of: "):
        recipe.load(home, sections)


def test_mistakes_of_all_recipes_are_found_at_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, "arch: i386\n" + DEBIAN, name)
    (tmp_path / site.FILE).write_text("mirors: {}\n")
    with pytest.raises(SchemaError) as caught:
        _ = House(tmp_path).recipes
    assert [found.path.relative_to(tmp_path).as_posix() for found in caught.value.findings] == [
        "recipes/one/recipe.yaml",
        "recipes/two/recipe.yaml",
        "site.yaml",
    ]


# What is right


@pytest.mark.parametrize(
    ("word", "arch"), [("amd64", "amd64"), ("x86_64", "amd64"), ("arm64", "arm64"), ("aarch64", "arm64")]
)
def test_both_spellings_of_an_architecture(word: str, arch: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"arch: {word}\n{DEBIAN}").common.arch == arch


@pytest.mark.parametrize("text", ["root: ram\n", "root: {kind: ram}\n"])
def test_a_root_by_its_kind_alone(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, f"arch: amd64\n{text}{DEBIAN}").common.root.kind is RootKind.RAM


def test_what_a_recipe_does_not_say(tmp_path: Path) -> None:
    common = load(tmp_path, f"arch: amd64\n{DEBIAN}").common
    assert (common.root.kind, common.clients, common.locale) == (RootKind.NFS, Clients.VOLATILE, "C.UTF-8")


def test_a_recipe_is_named_after_its_folder(tmp_path: Path) -> None:
    assert load(tmp_path, f"arch: amd64\n{DEBIAN}").name == "one"


def test_a_hook_by_its_file_alone_has_no_network(tmp_path: Path) -> None:
    (hook,) = load(tmp_path, f"arch: amd64\nhooks: [hooks/good]\n{DEBIAN}").common.hooks
    assert (hook.run.name, hook.network) == ("good", False)


def test_a_password_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    users = f"[{{name: ops, password-file: {hidden}}}, {{name: dev, password-env: DEV_HASH}}, {{name: guest}}]"
    (tmp_path / "one").mkdir()
    loaded = load(tmp_path / "one", f"arch: amd64\nusers: {users}\n{DEBIAN}")
    assert loaded.secrets() == {"password of ops": "", "password of dev": ""}
    assert [wrong for wrong, _ in loaded.problems()] == [
        f"users: {hidden} holds no password hash of ops",
        "users: DEV_HASH holds no password hash of dev",
    ]
    hidden.write_text("$6$a$b\nmore\n")
    monkeypatch.setenv("DEV_HASH", "a word and no hash")
    assert loaded.secrets() == {"password of ops": "$6$a$b", "password of dev": ""}
    assert len(loaded.problems()) == 1
    monkeypatch.setenv("DEV_HASH", "$y$c$d")
    assert loaded.secrets() == {"password of ops": "$6$a$b", "password of dev": "$y$c$d"}
    assert loaded.problems() == []


def test_a_password_is_in_no_representation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks and debuggers print it."""
    monkeypatch.setenv("OPS_HASH", "$6$salt$hash")
    loaded = load(tmp_path, f"arch: amd64\nusers: [{{name: ops, password-env: OPS_HASH}}]\n{DEBIAN}")
    assert loaded.secrets() == {"password of ops": "$6$salt$hash"}
    assert "$6$" not in repr(loaded)


def shared(folder: Path) -> Recipe:
    """A recipe with an overlay of its own and one of a shared part."""
    base = folder / "recipes/_base"
    (base / "overlay").mkdir(parents=True)
    (base / "base.yaml").write_text(f"arch: amd64\noverlay: [overlay]\n{DEBIAN}")
    return load(folder, "extends: ../_base/base.yaml\noverlay: [overlay]\n")


def test_files_are_named_from_the_recipes_folder_or_that_of_the_shared_part(tmp_path: Path) -> None:
    loaded = shared(tmp_path)
    assert [loaded.relative(path) for path in loaded.common.overlay] == ["_base/overlay", "overlay"]


def test_shared_parts_are_no_recipes(tmp_path: Path) -> None:
    shared(tmp_path)
    (tmp_path / "recipes/_base/recipe.yaml").write_text(DEBIAN)
    assert [folder.name for folder in recipe.find(tmp_path / "recipes")] == ["one"]


def test_no_recipes_are_no_mistake(tmp_path: Path) -> None:
    assert House(tmp_path).recipes == {}


def test_a_site_is_optional(tmp_path: Path) -> None:
    assert site.load(tmp_path) == site.Site()


def test_a_sites_mirrors_as_plain_data(tmp_path: Path) -> None:
    (tmp_path / site.FILE).write_text("mirrors: {debian: {archive: http://apt.lab/debian}}\n")
    assert site.load(tmp_path).mirror_urls() == {"debian": {"archive": "http://apt.lab/debian", "security": None}}


@pytest.mark.parametrize("name", sorted(schemas.texts()))
def test_schemas_and_reference_are_current(name: str) -> None:
    """`./doit schema` writes them."""
    assert (CHECKOUT / schemas.FOLDER / name).read_text() == schemas.texts()[name]


def test_writing_schemas_and_reference(tmp_path: Path) -> None:
    written = {str(path.relative_to(tmp_path / schemas.FOLDER)): path.read_text() for path in schemas.write(tmp_path)}
    assert written == schemas.texts()


def test_this_checkouts_recipes_are_right() -> None:
    assert House(CHECKOUT).recipes
