"""doit's `list` and `info`, saying what a user of recipes wants to know."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from doit.cmd_base import Command as DoitCommand
from doit.cmd_info import Info as DoitInfo
from doit.cmd_list import List as DoitList

from buildlib import report


class List(DoitList):  # type: ignore[misc]
    """`doit list`: the recipes with a line each, then the verbs. With a task or an option, doit's own list."""

    doc_purpose = "list recipes and what can be done with them"

    def _execute(
        self,
        subtasks: bool = False,
        quiet: bool = True,
        status: bool = False,
        private: bool = False,
        list_deps: bool = False,
        template: str | None = None,
        sort: str = "name",
        pos_args: list[str] | None = None,
    ) -> int:
        if subtasks or status or private or list_deps or template or pos_args:
            code: int = super()._execute(subtasks, quiet, status, private, list_deps, template, sort, pos_args)
            return code
        return _show(self.outstream, _overview(self.task_list))


def _state(name: str) -> str:
    """Of a recipe's last release: current, outdated or not there yet."""
    from buildlib.release import latest
    from buildlib.tasks import house

    if release := house().current(name):
        return f"current, {report.size(release.size)}"
    release = latest(house().images, name)
    return f"changed since {release.id[:8]}" if release else "not built"


_FORMS = {
    "bootloaders": "lock",
    "clean": "NAME",
    "diff": "TARGET/NAME",
    "lint": "NAME",
    "promote": "TARGET/NAME",
    "prune": "TARGET",
    "push": "TARGET/NAME",
    "rollback": "TARGET/NAME",
    "services": "TARGET",
    "status": "TARGET",
    "verify": "TARGET/NAME",
}
"""What a verb is about, where that is not a recipe."""


def _overview(tasks: Iterable[Any]) -> Iterator[str]:
    from buildlib.tasks import house

    yield "recipes (./doit build:NAME):"
    for name, recipe in house().recipes.items():
        common = recipe.common
        kind = f"{recipe.distro} {common.arch}, {common.root.kind.value} root, {common.clients.value}"
        yield f"  {name:<20} {_state(name):<22} {kind:<40} {common.description}"
    yield "tasks:"
    forms: dict[str, str] = {}
    for task in tasks:
        verb, colon, _ = task.name.partition(":")
        if task.subtask_of is None and not verb.startswith("_"):
            # `clean:NAME` has no group, which would be called like the command `clean`.
            known = task.has_subtask or colon or verb in _FORMS
            forms[f"{verb}:{_FORMS.get(verb, 'NAME')}" if known else verb] = task.doc or ""
    for form, doc in sorted(forms.items()):
        yield f"  {form:<20} {doc}"


def _show(stream: TextIO, lines: Iterable[str]) -> int:
    """Write lines; somebody who has seen enough (`| head`) is no error."""
    try:
        for line in lines:
            stream.write(f"{line}\n")
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _cmdline(name: str) -> str:
    """As far as it is known before a build."""
    from buildlib.tasks import house

    release = house().current(name)
    return str(release.manifest["content"]["cmdline"]) if release else house().plan(name).cmdline


class Info(DoitInfo):  # type: ignore[misc]
    """`doit info build:NAME`: what would run and because of what; of any other task, doit's own words."""

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        from buildlib.tasks import house
        from buildlib.why import explain

        verb, _, name = pos_args[0].partition(":") if len(pos_args) == 1 else ("", "", "")
        if verb != "build" or name not in house().recipes:
            code: int = super()._execute(pos_args, hide_status)
            return code
        head = [f"build:{name}", house().recipes[name].common.description, ""]
        tail = ["", f"kernel command line: {_cmdline(name)}"]
        _show(self.outstream, [*head, *explain(house(), name), *tail])
        return 0 if house().current(name) else 1


class New(DoitCommand):  # type: ignore[misc]
    """`doit new NAME --distro DISTRO`: a new recipe."""

    name = "new"
    doc_purpose = "write a small recipe that builds"
    doc_usage = "NAME [--distro DISTRO]"
    doc_description = "DISTRO is alpine, archlinux, debian or nixos; debian without."

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        from buildlib import scaffold
        from buildlib.errors import BuildError

        try:
            name, distro = _new_words(pos_args)
            made = scaffold.write(Path("recipes"), name, distro)
        except BuildError as error:
            sys.stderr.write(f"{error}\n")
            return 3
        _show(sys.stdout, [*(str(path) for path in made), f"now: ./doit build:{name}"])
        return 0


class Clean(DoitCommand):  # type: ignore[misc]
    """`doit clean NAME`, in the place of doit's own `clean`, which knows nothing of recipes: as `clean:NAME`."""

    name = "clean"
    doc_purpose = "remove all that was built of a recipe: clean NAME, or clean:NAME"
    doc_usage = "NAME... [--dry-run]"
    doc_description = "Its lock, and what is published, stay; so do stages that other recipes need."
    cmd_options = (
        {"name": "dry", "long": "dry-run", "type": bool, "default": False, "help": "say what would go; touch nothing"},
    )

    def execute(self, opt_values: dict[str, Any], pos_args: list[str]) -> int:
        from buildlib import gc_tasks, report
        from buildlib.errors import BuildError
        from buildlib.tasks import house

        names = [word.removesuffix("/").removeprefix("recipes/") for word in pos_args if word != "--dry-run"]
        try:
            lost = [name for name in names if name not in house().recipes]
            if lost or not names:
                raise BuildError(
                    f"there is no recipe {', '.join(lost)}" if lost else "clean what?",
                    hint="./doit clean NAME [--dry-run]; `./doit list` names the recipes, `./doit gc` is for all",
                )
        except BuildError as error:
            sys.stderr.write(f"{report.failure(error)}\n")
            return 3
        dry = opt_values["dry"] or "--dry-run" in pos_args
        failed = [failure for name in names if (failure := gc_tasks.clean(name, dry=dry))]
        for failure in failed:
            sys.stderr.write(f"{failure.message}\n")
        return 1 if failed else 0


def _new_words(words: list[str]) -> tuple[str, str]:
    """Name and distribution, in any order."""
    from buildlib.errors import BuildError

    rest = [part for word in words for part in (word.split("=", 1) if word.startswith("--distro=") else [word])]
    distro = "debian"
    if "--distro" in rest[:-1]:
        at = rest.index("--distro")
        distro = rest[at + 1]
        del rest[at : at + 2]
    if len(rest) != 1 or rest[0].startswith("-"):
        raise BuildError("usage: ./doit new NAME [--distro alpine|archlinux|debian|nixos]")
    return rest[0], distro
