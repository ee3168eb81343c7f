"""Linux, macOS and Windows: names that one of them lacks are asked for before they are used, and text is UTF-8."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_house import PACKAGE, ROOT, files, name, tree

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
NAMES = {  # attributes of => which
    "os": """
        chown chroot fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority
        getuid killpg lchown mkfifo mknod nice openpty O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_SYNC posix_fadvise
        posix_fallocate posix_spawn pread pwrite readv register_at_fork sched_getaffinity sched_setaffinity sendfile
        setegid seteuid setgid setpgid setpriority setsid setuid statvfs sync sysconf tcgetpgrp uname wait wait3 wait4
        waitid writev WIFEXITED WIFSIGNALED WTERMSIG""",
    "signal": """
        alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait SIGALRM SIGCHLD
        SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGXCPU SIGXFSZ""",
}
LINKS = ("symlink_to", "hardlink_to")  # of any path
ASKS = ("hasattr(os", "os.name", "sys.platform", "needs_")
CODE = [*files(PACKAGE), *files(ROOT / "benchmarks"), *files(ROOT / "examples")]
ON_LINUX_ALONE = ["benchmarks/inversion/kills.py"]  # which says so at its start
TESTS = [path for path in files(ROOT / "tests") if path.name != "systems.py"]


def walk(node: ast.AST, asked: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, and whether something around each asks for the system, or is a function and so may be left alone."""
    yield node, asked
    if isinstance(node, ast.If | ast.IfExp | ast.BoolOp):
        asked |= any(word in ast.unparse(getattr(node, "test", node)) for word in ASKS)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        asked |= any(word in ast.unparse(mark) for mark in node.decorator_list for word in ASKS)
        asked |= any(isinstance(each, ast.If) and _leaves_where_asked(each) for each in node.body)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, asked)


def _leaves_where_asked(node: ast.If) -> bool:
    return any(word in ast.unparse(node.test) for word in ASKS) and isinstance(node.body[-1], ast.Raise | ast.Return)


def lacking(path: Path) -> Iterator[str]:
    """Uses of names that a system lacks where nobody asks for it."""
    in_functions = {
        inner for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)
    }
    for node, asked in walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in in_functions and not asked:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{name(path)}, line {node.lineno}: import {found}" for found in MODULES.intersection(modules))
        elif isinstance(node, ast.Attribute) and not asked:
            owner = ast.unparse(node.value)
            if node.attr in NAMES.get(owner, "").split() or node.attr in LINKS:
                yield f"{name(path)}, line {node.lineno}: {owner}.{node.attr}"


@pytest.mark.parametrize("paths", [CODE, TESTS], ids=["code", "tests"])
def test_what_a_system_lacks_is_asked_for_first(paths):
    """By ``hasattr(os, ...)``, ``os.name`` or ``sys.platform``; in tests by the marks and helpers of ``systems``."""
    wrong = [found for path in paths if name(path) not in ON_LINUX_ALONE for found in lacking(path)]
    assert not wrong, "\n".join(wrong)


def opens_text_without_encoding(node: ast.Call) -> bool:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    given = {keyword.arg for keyword in node.keywords}
    if "encoding" in given:
        return False
    if called == "open":
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        modes = [
            each.value for each in [*node.args, *(k.value for k in node.keywords)] if isinstance(each, ast.Constant)
        ]
        return owner in ("", "path", "file") and not any("b" in mode for mode in modes if isinstance(mode, str))
    return called in ("read_text", "write_text") or bool(given & {"text", "universal_newlines"})


def test_text_is_utf_8_on_every_system():
    """Without ``encoding=`` Windows takes its code page, in which a card or a page of the docs is not whole."""
    wrong = [
        f"{name(path)}, line {node.lineno}"
        for path in CODE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and opens_text_without_encoding(node)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("os.fork()", True),
        ("import fcntl", True),
        ("def f():\n import fcntl", False),
        ("if hasattr(os, 'fork'): os.fork()", False),
        ("n = os.getuid() if hasattr(os, 'getuid') else 0", False),
        ("if hasattr(os, 'getuid') and os.getuid(): pass", False),
        ("def f():\n if sys.platform != 'linux': raise E\n os.fork()", False),
        ("@needs_fork\ndef f(): os.fork()", False),
        ("path.symlink_to(other)", True),
        ("os.kill(pid, signal.SIGKILL)", True),
        ("signal.SIGTERM", False),
    ],
)
def test_the_law_itself(tmp_path, monkeypatch, code, found):
    path = tmp_path / "code.py"
    path.write_text(code, encoding="utf-8")
    monkeypatch.setattr("test_systems.name", str)
    assert bool([*lacking(path)]) == found
