"""What `schema.load` accepts, and where it says what is wrong."""

from __future__ import annotations

import contextlib
import errno
import pickle
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildlib import schema
from buildlib.errors import BuildError
from buildlib.schema import Dir, File, Range, Repeats, Text, shorthand

SETTINGS = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def mac(text: str) -> str:
    if text.startswith("ff"):
        raise ValueError(f"{text!r} is a broadcast address")
    return text.lower().replace("-", ":")


Host = Annotated[str, Text(r"[a-z][a-z0-9.-]*", what="a host name", example="node-1")]
Mac = Annotated[str, Text(r"(?:[0-9A-Fa-f]{2}[:-]){2}[0-9A-Fa-f]{2}", what="a MAC", normal=mac)]


class Boot(StrEnum):
    GRUB = "grub"
    IPXE = "ipxe"
    NO = "no"


@dataclass(frozen=True)
class User:
    name: Host
    uid: Annotated[int, Range(0, 65535)] | None = None
    groups: tuple[str, ...] = ()


@shorthand("path")
@dataclass(frozen=True)
class Overlay:
    path: Annotated[Path, Dir()]
    mode: Literal["copy", "link"] = "copy"


@dataclass(frozen=True)
class Net:
    address: str
    prefix_len: int = 24

    def check(self) -> Iterable[tuple[str, str]]:
        if self.prefix_len > 32:
            yield "prefix-len", "no such prefix"


@dataclass(frozen=True)
class Recipe:
    suite: str
    boot: Boot = Boot.GRUB
    release: str | None = None
    debug: bool = False
    keep: Annotated[int, Range(minimum=1)] = 3
    packages: tuple[str, ...] = ()
    arguments: Annotated[tuple[str, ...], Repeats()] = ()
    users: tuple[User, ...] = ()
    hosts: Mapping[Mac, Net] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    overlay: Overlay | None = None
    hook: Annotated[Path, File()] | None = None
    kernel_args: str = ""

    def check(self) -> Iterable[tuple[str, str]]:
        for number, user in enumerate(self.users):
            if user.name == "root":
                yield f"users.{number}.name", "root is there already"
        for number, package in enumerate(self.packages):
            if package == "evil":
                yield f"packages.{number}", "evil package"
        for name in self.hosts:
            if name.startswith("00"):
                yield f"hosts.{name}.address", "reserved host"
        if "a.b" in self.labels:
            yield "labels.a.b", "dotted label"
        if self.suite == "hurd":
            yield "boot", "hurd boots by hand"


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """recipes/x, with the working directory above recipes."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes" / "x"
    (folder / "overlay").mkdir(parents=True)
    (folder / "hook.sh").touch()
    (tmp_path / "outside").touch()
    return folder


def write(folder: Path, text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str) -> Recipe:
    return schema.load(write(folder, text), Recipe)


def findings(path: Path, kind: type = Recipe) -> list[tuple[int, int, str]]:
    with pytest.raises(schema.SchemaError) as caught:
        schema.load(path, kind)
    return [(found.line, found.column, found.message) for found in caught.value.findings]


ACCEPTED: list[tuple[str, str, object]] = [
    ("suite: no", "suite", "no"),
    ("suite: 012", "suite", "012"),
    ("suite: 3.20", "suite", "3.20"),
    ("suite: 2024-01-01", "suite", "2024-01-01"),
    ("suite: 'null'", "suite", "null"),
    ("suite: ''", "suite", ""),
    ("suite: !!str null", "suite", "null"),
    ("suite: ! null", "suite", "null"),
    ("suite: =", "suite", "="),
    ("suite: |\n  a\n  b\n", "suite", "a\nb\n"),
    ("\ufeffsuite: x", "suite", "x"),
    ("suite: x\nrelease: 3.20", "release", "3.20"),
    ("suite: x\nrelease: ~", "release", None),
    ("suite: x\nrelease:", "release", None),
    ("suite: x\nboot: no", "boot", Boot.NO),
    ("suite: x\nboot: 'ipxe'", "boot", Boot.IPXE),
    ("suite: x\ndebug: yes", "debug", True),
    ("suite: x\ndebug: oN", "debug", True),
    ("suite: x\ndebug: FALSE", "debug", False),
    ("suite: x\nkeep: 1_000", "keep", 1000),
    ("suite: x\nkeep: +7", "keep", 7),
    ("suite: x\npackages: [a, 1, 1.0]", "packages", ("a", "1", "1.0")),
    ("suite: x\npackages: []", "packages", ()),
    ("suite: x\narguments: [-o, a, -o, b]", "arguments", ("-o", "a", "-o", "b")),
    ("suite: x\nusers:\n- {name: ada, uid: 0}\n- name: bob\n", "users", (User("ada", 0), User("bob"))),
    ("suite: x\nlabels: {no: yes, 1: 2, '<<': x}", "labels", {"no": "yes", "1": "2", "<<": "x"}),
    ("suite: x\nhosts: {AA-bb-CC: {address: y}}", "hosts", {"aa:bb:cc": Net("y")}),
    ("suite: &s x\nrelease: *s", "release", "x"),
    ("suite: x\nlabels: &l {a: b}\nhosts: {aa-bb-cc: {address: *k}}".replace("*k", "k"), "labels", {"a": "b"}),
    ("suite: x\nkernel-args: quiet", "kernel_args", "quiet"),
]


@pytest.mark.parametrize(("text", "attribute", "value"), ACCEPTED)
def test_accepts(home: Path, parser: None, text: str, attribute: str, value: object) -> None:
    assert getattr(read(home, text), attribute) == value


REFUSED: list[tuple[str, list[tuple[int, int, str]]]] = [
    # text
    ("suite:\n", [(1, 7, "expects text, found nothing")]),
    ("suite: ~", [(1, 8, "expects text, found nothing")]),
    ("suite: [a]", [(1, 8, "expects text, found a list")]),
    ("suite: {a: b}", [(1, 8, "expects text, found a map")]),
    ("suite: x\nusers: [{name: x y}]", [(2, 16, "expects a host name like 'node-1', found 'x y'")]),
    ("suite: x\nusers: [{name: 'x'}, {name: ~}]", [(2, 29, "a host name like 'node-1', found nothing")]),
    ("suite: x\nhosts: {ff-ff-ff: {address: x}}", [(2, 9, "'ff-ff-ff' is a broadcast address")]),
    # bool, int
    ("suite: x\ndebug: maybe", [(2, 8, "expects yes or no, found 'maybe'")]),
    ("suite: x\ndebug: 'yes'", [(2, 8, "expects yes or no, found the quoted text 'yes'")]),
    ("suite: x\ndebug: 1", [(2, 8, "expects yes or no, found '1'")]),
    ("suite: x\nkeep: 0", [(2, 7, "expects a whole number from 1, found '0'")]),
    ("suite: x\nkeep: 0x10", [(2, 7, "whole number")]),
    ("suite: x\nkeep: 010", [(2, 7, "whole number")]),
    ("suite: x\nkeep: 1_", [(2, 7, "whole number")]),
    ("suite: x\nkeep: 1.0", [(2, 7, "whole number")]),
    ("suite: x\nkeep: '5'", [(2, 7, "found the quoted text '5'")]),
    ("suite: x\nkeep: " + 5000 * "9", [(2, 7, "whole number")]),
    ("suite: x\nusers: [{name: a, uid: 70000}]", [(2, 24, "from 0 up to 65535, found '70000'")]),
    # enum, literal
    ("suite: x\nboot: grbu", [(2, 7, "one of 'grub', 'ipxe', 'no', found 'grbu' (did you mean 'grub'?)")]),
    ("suite: x\nboot:", [(2, 6, "expects one of 'grub', 'ipxe', 'no', found nothing")]),
    ("suite: x\noverlay: {path: overlay, mode: cop}", [(2, 32, "did you mean 'copy'?")]),
    # lists and maps
    ("suite: x\npackages: a", [(2, 11, "expects a list, found 'a'")]),
    ("suite: x\npackages:", [(2, 10, "expects a list, found nothing")]),
    ("suite: x\npackages:\n- a\n- b\n- a", [(5, 3, "'a' is in the list twice, first in line 3")]),
    ("suite: x\npackages: [&a a, *a]", [(2, 18, "'a' is in the list twice")]),
    ("suite: x\nlabels: [a]", [(2, 9, "expects a map, found a list")]),
    ("suite: x\nlabels: {a: [], b: ~}", [(2, 13, "found a list"), (2, 20, "found nothing")]),
    (
        "suite: x\nhosts:\n  AA-BB-CC: {address: x}\n  aa:bb:cc: {address: x}",
        [(4, 3, "'aa:bb:cc' means the same as 'AA-BB-CC' in line 3")],
    ),
    ("suite: x\nusers: [ada]", [(2, 9, "expects a map, found 'ada'")]),
    ("suite: x\noverlay: [a]", [(2, 10, "expects a map or its 'path' alone, found a list")]),
    # keys
    ("boot: grub", [(1, 1, "missing key 'suite'")]),
    ("suite: x\nusers:\n- uid: 1", [(3, 3, "missing key 'name'")]),
    ("suite: x\nkeeep: 1", [(2, 1, "unknown key 'keeep' (did you mean 'keep'?)")]),
    ("suite: x\nkernel_args: a", [(2, 1, "unknown key 'kernel_args' (did you mean 'kernel-args'?)")]),
    ("suite: x\nextend: a", [(2, 1, "did you mean 'extends'?")]),
    ("suite: x\nusers: [{name: a, zzz: 1}]", [(2, 19, "unknown key 'zzz'; known are 'name', 'uid', 'groups'")]),
    ("suite: x\nusers: [{name: a, extends: b}]", [(2, 19, "unknown key 'extends'; known are 'name'")]),
    ("suite: x\nboot: grub\nsuite: y", [(3, 1, "duplicate key 'suite', first in line 1")]),
    ("suite: x\n? [a]\n: b", [(2, 3, "expects text as a key, found a list")]),
    ("suite: x\n~: b", [(2, 1, "expects text as a key, found nothing")]),
    ("<<: {suite: x}", [(1, 1, "'extends'")]),
    # tags
    ("suite: !!python/name:os.system x", [(1, 8, "unknown tag '!!python/name:os.system'")]),
    ("suite: x\npackages: !own [a]", [(2, 11, "unknown tag '!own'")]),
    ("suite: x\nkeep: !!int 5", [(2, 7, "unknown tag '!!int'")]),
    ("suite: !replace x", [(1, 8, "'!replace' is for a list or a map")]),
    # aliases
    ("suite: x\nusers: &u [*u]", [(2, 12, "recursive")]),
    ("suite: *nix", [(1, 8, "unknown alias '*nix'")]),
    # paths
    ("suite: x\nhook: /etc/passwd", [(2, 7, "relative to this file")]),
    ("suite: x\nhook: ../../outside", [(2, 7, "leads out of 'recipes'")]),
    ("suite: x\nhook: none.sh", [(2, 7, "there is no 'recipes/x/none.sh'")]),
    ("suite: x\nhook: overlay", [(2, 7, "expects a file, but 'recipes/x/overlay' is none")]),
    ("suite: x\nhook: ''", [(2, 7, "expects the path of a file, found ''")]),
    ("suite: x\nhook: hook.sh/x", [(2, 7, "Not a directory")]),
    ('suite: x\nhook: "a\\0b"', [(2, 7, "can't be used")]),
    ("suite: x\nhook: " + 300 * "a", [(2, 7, "too long")]),
    ("suite: x\noverlay: hook.sh", [(2, 10, "expects a folder")]),
    # check
    ("suite: x\nusers:\n- name: ada\n- uid: 1\n  name: root", [(5, 9, "root is there already")]),
    ("suite: x\nhosts: {00-00-01: {address: y}}", [(2, 29, "reserved host")]),
    ("suite: x\nhosts: {aa-bb-cc: {address: y, prefix-len: 33}}", [(2, 44, "no such prefix")]),
    ("suite: x\nlabels: {a: x, a.b: y}", [(2, 21, "dotted label")]),
    ("keep: 3\nsuite: hurd", [(1, 1, "hurd boots by hand")]),
    # all at once
    (
        "suit: x\nkeep: a\nusers:\n- {name: X, uid: b}\n- {nam: a}\n",
        [
            (1, 1, "missing key 'suite'"),
            (1, 1, "did you mean 'suite'?"),
            (2, 7, "whole number"),
            (4, 10, "host name"),
            (4, 18, "whole number"),
            (5, 3, "missing key 'name'"),
            (5, 4, "did you mean 'name'?"),
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), REFUSED)
def test_refuses(home: Path, parser: None, text: str, expected: list[tuple[int, int, str]]) -> None:
    found = findings(write(home, text))
    assert [place[:2] for place in found] == [place[:2] for place in expected]
    for (*_, message), (*_, words) in zip(found, expected, strict=True):
        assert words in message


UNREADABLE: list[tuple[bytes, tuple[int, int, str]]] = [
    (b"", (1, 1, "empty")),
    (b"# nothing\n", (1, 1, "empty")),
    (b"---\n", (2, 1, "top level, found nothing")),
    (b"- a\n", (1, 1, "top level, found a list")),
    (b"text", (1, 1, "top level, found 'text'")),
    (b"suite: x\n---\nsuite: y\n", (2, 1, "second document")),
    (b"suite: x\nkeep: [1\n", (3, 1, "not YAML")),
    (b"suite: x\n\tkeep: 1\n", (2, 1, "not YAML")),
    (b"suite: x\nkeep: \xc3\xa4\xff\n", (2, 8, "not UTF-8")),
    (b"suite: x\nkeep: \x01\n", (2, 7, "control character '\\x01'")),
    (b"[" * 100_000, (1, 52, "50 levels")),
    (
        b"a: &a [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefgh"),
        (5, 23, "50000 values"),
    ),
]


@pytest.mark.parametrize(("content", "expected"), UNREADABLE)
def test_an_unreadable_file_is_one_finding(
    home: Path, parser: None, content: bytes, expected: tuple[int, int, str]
) -> None:
    ((line, column, message),) = findings(write(home, content))
    assert expected[2] in message
    assert (line, column) == expected[:2]


def test_a_character_that_does_not_exist_is_one_finding(home: Path, parser: None) -> None:
    ((line, _, message),) = findings(write(home, r'suite: "\U99999999"'))
    assert (line, message[:8]) == (1, "not YAML")


def test_missing_file_and_folder(home: Path) -> None:
    assert findings(home / "none.yaml") == [(1, 1, "can't be read: No such file or directory")]
    assert findings(home) == [(1, 1, "can't be read: Is a directory")]


def test_a_file_without_permission(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:  # root, as whom the tests may run, reads everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = write(home, "suite: x")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert findings(path) == [(1, 1, "can't be read: Permission denied")]


def test_paths_are_absolute_and_a_scalar_stands_for_an_overlay(home: Path) -> None:
    recipe = read(home, "suite: x\nhook: ../x/./hook.sh\noverlay: overlay")
    assert recipe.hook == home / "hook.sh"
    assert recipe.overlay == Overlay(home / "overlay") == read(home, "suite: x\noverlay: {path: overlay}").overlay


def test_a_link_out_of_the_root_is_refused(home: Path) -> None:
    (home / "link").symlink_to("../../outside")
    path = write(home, "suite: x\nhook: link")
    assert findings(path) == [(2, 7, "'link' leads out of 'recipes'")]
    assert schema.load(path, Recipe, root=home.parent.parent).hook == home / "link"


def test_errors_read_and_travel_like_build_errors(home: Path) -> None:
    path = write(home, "keep: a\nkeeep: b\nsuite: x\n")
    with pytest.raises(BuildError) as caught:
        schema.load(path, Recipe)
    assert str(caught.value) == (
        "recipes/x/recipe.yaml:1:7: expects a whole number from 1, found 'a'\n"
        "recipes/x/recipe.yaml:2:1: unknown key 'keeep' (did you mean 'keep'?)"
    )
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, schema.SchemaError)
    assert (copy.findings, str(copy)) == (caught.value.findings, str(caught.value))  # type: ignore[attr-defined]


def test_a_file_outside_the_working_directory_is_shown_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(home, "keep: 1")
    monkeypatch.chdir(home / "overlay")
    with pytest.raises(schema.SchemaError, match=f"^{path}:1:1: "):
        schema.load(path, Recipe)


# extends


def test_extending_merges_maps_appends_to_lists_and_overrides_scalars(home: Path) -> None:
    write(
        home.parent,
        "keep: 5\nboot: ipxe\npackages: [a, b]\narguments: [-o, a]\nusers: [{name: ada}]\nlabels: {a: x, b: x}\n"
        "hosts: {aa-bb-cc: {prefix-len: 8}}\n",
        "base.yaml",
    )
    recipe = read(
        home,
        "extends: ../base.yaml\nsuite: x\nboot: grub\npackages: [b, c]\narguments: [-o, b]\nusers: [{name: bob}]\n"
        "labels: {b: y, c: y}\nhosts: {aa-bb-cc: {address: z}}\n",
    )
    assert recipe == Recipe(
        suite="x",
        keep=5,
        boot=Boot.GRUB,
        packages=("a", "b", "c"),
        arguments=("-o", "a", "-o", "b"),
        users=(User("ada"), User("bob")),
        labels={"a": "x", "b": "y", "c": "y"},
        hosts={"aa:bb:cc": Net("z", 8)},
    )


def test_replace_discards_what_is_inherited(home: Path) -> None:
    write(home, "suite: x\npackages: [a]\nlabels: {a: x}\noverlay: {path: overlay, mode: link}", "base.yaml")
    recipe = read(home, "extends: base.yaml\npackages: !replace [b]\nlabels: !replace {}\noverlay: overlay")
    assert (recipe.packages, recipe.labels, recipe.overlay) == (("b",), {}, Overlay(home / "overlay"))


def test_null_overrides_an_optional(home: Path) -> None:
    write(home, "suite: x\nrelease: y", "base.yaml")
    assert read(home, "extends: base.yaml\nrelease: ~").release is None


def test_a_file_that_two_others_extend_counts_once_and_before_both(home: Path) -> None:
    write(home, "suite: base\nkeep: 1\npackages: [a]\nusers: [{name: ada}]", "base.yaml")
    write(home, "extends: base.yaml\nkeep: 2\npackages: [l]", "left.yaml")
    write(home, "extends: [base.yaml]\npackages: [r]", "right.yaml")
    recipe = read(home, "extends:\n- left.yaml\n- right.yaml\npackages: [o]")
    assert recipe == Recipe("base", keep=2, packages=("a", "l", "r", "o"), users=(User("ada"),))
    names = [path.name for path in schema.sources(home / "recipe.yaml")]
    assert names == ["recipe.yaml", "right.yaml", "left.yaml", "base.yaml"]


def test_paths_keep_the_folder_of_their_own_file(home: Path) -> None:
    (home.parent / "parts" / "files").mkdir(parents=True)
    write(home.parent, "overlay: files", "parts/part.yaml")
    assert read(home, "extends: ../parts/part.yaml\nsuite: x").overlay == Overlay(home.parent / "parts" / "files")


def places(path: Path) -> list[tuple[str, int, int, str]]:
    with pytest.raises(schema.SchemaError) as caught:
        schema.load(path, Recipe)
    return [(found.path.name, found.line, found.column, found.message) for found in caught.value.findings]


def test_mistakes_are_placed_in_the_file_that_has_them(home: Path) -> None:
    write(home, "# base\nkeep: x\npackages: [a, evil]\nkeeep: 1", "base.yaml")
    found = places(write(home, "extends: base.yaml\nhook: no\nusers: [{}]"))
    assert [place[:3] for place in found] == [
        ("base.yaml", 2, 7),
        ("base.yaml", 4, 1),
        ("recipe.yaml", 1, 1),
        ("recipe.yaml", 2, 7),
        ("recipe.yaml", 3, 9),
    ]
    assert found[2][3] == "missing key 'suite'"


def test_check_counts_the_elements_after_the_merge(home: Path) -> None:
    write(home, "suite: x\npackages: [a, b]", "base.yaml")
    assert places(write(home, "extends: base.yaml\npackages: [a, c, evil]")) == [("recipe.yaml", 2, 18, "evil package")]


def test_a_mistake_in_an_overridden_value_does_not_count(home: Path) -> None:
    write(home, "suite: x\nkeep: x", "base.yaml")
    assert read(home, "extends: base.yaml\nkeep: 2").keep == 2


def test_a_circle_is_shown(home: Path) -> None:
    write(home, "extends: b.yaml", "a.yaml")
    write(home, "keep: 1\nextends: [a.yaml]", "b.yaml")
    path = write(home, "extends: a.yaml")
    assert places(path) == [
        ("b.yaml", 2, 11, "'extends' goes in a circle: recipes/x/a.yaml -> recipes/x/b.yaml -> recipes/x/a.yaml")
    ]
    with pytest.raises(schema.SchemaError):
        schema.sources(path)


def test_what_an_unreadable_base_may_hold_is_not_missed(home: Path) -> None:
    write(home, "suite: [\n", "base.yaml")
    found = places(write(home, "extends: [base.yaml, none.yaml, /etc/passwd, ../../outside, {}]\nkeep: x"))
    assert [place[:3] for place in found] == [
        ("base.yaml", 2, 1),
        ("recipe.yaml", 1, 22),
        ("recipe.yaml", 1, 33),
        ("recipe.yaml", 1, 46),
        ("recipe.yaml", 1, 61),
        ("recipe.yaml", 2, 7),
    ]


# types


@dataclass(frozen=True)
class Loop:
    name: str
    next: Loop | None = None


@dataclass(frozen=True)
class Ambiguous:
    value: str | int


@dataclass(frozen=True)
class Unanchored:
    path: Path


@dataclass(frozen=True)
class Real:
    value: float


def test_a_dataclass_may_contain_itself(home: Path) -> None:
    path = write(home, "name: a\nnext: {name: b, next: {name: c}}")
    assert schema.load(path, Loop) == Loop("a", Loop("b", Loop("c")))


@pytest.mark.parametrize("kind", [Ambiguous, Unanchored, Real])
def test_a_type_that_is_not_understood_is_the_programmers_mistake(home: Path, kind: type) -> None:
    with pytest.raises(TypeError):
        schema.load(write(home, "value: 1"), kind)


def test_a_shorthand_names_a_field() -> None:
    with pytest.raises(TypeError, match="no field 'nmae'"):
        shorthand("nmae")(User)


def test_importing_is_light() -> None:
    code = "import sys, buildlib.schema; print({'yaml', 'difflib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


# properties

AWKWARD = ["1", "1.0", "3.20", "012", "0x1f", "1e3", ".5", "1_000", "yes", "no", "On", "true", "null", "~", "", "<<"]
AWKWARD += ["=", "2024-01-01", "2024-01-01 10:00:00", "12:30:45", ".inf", ".NaN", "!replace", "*a", "&a", "- a", "a: b"]
# safe_dump(allow_unicode=True) of PyYAML 6.0.3 writes U+0085 such that its own safe_load reads a space.
texts = st.text(st.characters(exclude_characters="\x85", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    AWKWARD
)
host_names = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True)
users = st.builds(
    User, host_names, st.none() | st.integers(0, 65535), st.lists(texts, unique=True, max_size=3).map(tuple)
).filter(lambda user: user.name != "root")
macs = st.from_regex(r"[a-e1-9][0-9a-f](:[0-9a-f]{2}){2}", fullmatch=True)
recipes = st.builds(
    Recipe,
    suite=texts.filter(lambda text: text != "hurd"),
    boot=st.sampled_from(Boot),
    release=st.none() | texts,
    debug=st.booleans(),
    keep=st.integers(1, 10**15),
    packages=st.lists(texts, unique=True, max_size=4).map(tuple),
    arguments=st.lists(texts, max_size=4).map(tuple),
    users=st.lists(users, max_size=3).map(tuple),
    hosts=st.dictionaries(macs, st.builds(Net, texts, st.integers(0, 32)), max_size=2),
    labels=st.dictionaries(texts, texts, max_size=3),
    kernel_args=texts,
)


def plain(value: Any) -> Any:
    """What yaml.safe_dump can write of a dataclass."""
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple):
        return [plain(element) for element in value]
    if isinstance(value, dict):
        return {name: plain(element) for name, element in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name.replace("_", "-"): plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


@SETTINGS
@given(recipe=recipes, flow=st.booleans(), unicode=st.booleans())
def test_what_yaml_writes_is_read_back(home: Path, recipe: Recipe, flow: bool, unicode: bool) -> None:
    document = plain(recipe)
    del document["overlay"], document["hook"]
    assert read(home, yaml.safe_dump(document, default_flow_style=flow, allow_unicode=unicode)) == recipe


@SETTINGS
@given(
    text=st.sampled_from([text for text in AWKWARD if text[:1] not in ("", "~", "!", "*", "&", "-") and text != "null"])
)
def test_unquoted_text_stays_as_it_is_written(home: Path, text: str) -> None:
    if ": " not in text:
        assert read(home, f"suite: {text}").suite == text


names = st.sampled_from(
    ["suite", "keep", "users", "name", "extends", "overlay", "path", "hosts", "hook", "<<", "labels"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | texts | st.just("recipe.yaml")
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | texts, inner, max_size=4)
)
soup = st.text("ab:-[]{}!&*?|>'\"%@ \n\t,#<~0\\", max_size=60)


@SETTINGS
@given(
    content=st.binary(max_size=60)
    | soup.map(str.encode)
    | trees.map(lambda tree: yaml.safe_dump(tree).encode())
    | st.dictionaries(names, trees, max_size=5).map(lambda tree: yaml.safe_dump(tree).encode())
)
def test_nothing_but_a_schema_error_is_raised(home: Path, parser: None, content: bytes) -> None:
    path = write(home, content)
    with contextlib.suppress(schema.SchemaError):
        schema.load(path, Recipe)
