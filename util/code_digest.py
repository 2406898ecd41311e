"""A checksum of what source files compute: comments, blank lines, line breaks and docstrings do not change it."""

import ast
import functools
import hashlib
from pathlib import Path


@functools.cache  # the code of a process does not change while it runs
def code_digest(*paths: Path) -> str:
    """SHA-256 of the syntax trees of these Python files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if ast.get_docstring(node, clean=False) is not None:
                    node.body[0] = ast.Pass()
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def project_code_digest() -> str:
    """The digest of the scripts and of util/: a run with other code may give other results."""
    root = Path(__file__).parent.parent
    return code_digest(*sorted(root.glob("*.py")), *sorted(root.glob("util/*.py")))


def warn_of_other_code(digest: str | None, log) -> None:
    """Logs a warning if a run was made by other code than the present one."""
    if digest != project_code_digest():
        log("warning: the code has changed since this run was made; --overwrite_output_dir trains it again")
