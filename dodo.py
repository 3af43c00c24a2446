"""Netboot images as a doit task graph: `doit list` shows what there is to build."""

from pathlib import Path

from buildlib.boot_tasks import (  # noqa: F401
    task__bootloaders,
    task_boot,
    task_bootloaders,
    task_console,
    task_serve,
)
from buildlib.doctor_tasks import task_doctor  # noqa: F401
from buildlib.gc_tasks import task__clean, task_gc  # noqa: F401
from buildlib.initrd_tasks import task_initrd  # noqa: F401
from buildlib.lint_tasks import task_lint  # noqa: F401
from buildlib.lock_tasks import task__lock, task_lock  # noqa: F401
from buildlib.nightly_tasks import task_nightly, task_report  # noqa: F401
from buildlib.push_tasks import (  # noqa: F401
    task_diff,
    task_promote,
    task_prune,
    task_push,
    task_rollback,
    task_services,
    task_status,
    task_verify,
)
from buildlib.tasks import (  # noqa: F401
    configure,
    task__check,
    task__stage,
    task_build,
    task_schema,
    task_shell,
    task_tar,
    task_test,
    task_why,
)

DOIT_CONFIG = configure(Path(__file__).parent)
