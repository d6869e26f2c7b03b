"""What a package's code can do, read in it without running it, and held against what it declares (`[code]` in medmesh.toml).

This is for people who review and for those who wrote it: it finds what is written plainly. What it cannot see (`dynamic` says where it may
not) the sandbox holds: there is no network in it, no file to write outside, and limits on memory and time (decision 0012).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from medmesh.errors import Problem
from medmesh.learning.package import MANIFEST, Manifest, Package

PLAIN = frozenset((
    "__future__", "abc", "bisect", "collections", "copy", "dataclasses", "enum", "functools", "heapq", "itertools", "math",
    "numbers", "numpy", "operator", "random", "statistics", "string", "time", "types", "typing", "warnings",
))  # fmt: skip
"""Arithmetic and syntax: what nobody needs to declare, beside the package's own frameworks and modules."""
NETWORK = frozenset((
    "aiohttp", "ftplib", "http", "httpx", "nats", "paramiko", "requests", "smtplib", "socket", "socketserver", "ssl", "telnetlib",
    "urllib", "websockets",
))  # fmt: skip
FILES = frozenset((
    "fileinput", "glob", "io", "mmap", "os", "pathlib", "shutil", "sqlite3", "tempfile", "zipfile",
))  # fmt: skip
PROCESSES = frozenset((
    "_ctypes", "cffi", "concurrent", "ctypes", "multiprocessing", "os", "pty", "signal", "subprocess", "threading",
))  # fmt: skip
DYNAMIC = frozenset((
    "ast", "builtins", "code", "codeop", "dill", "gc", "importlib", "inspect", "marshal", "medmesh", "pickle", "pkgutil", "runpy",
    "shelve", "sys", "traceback",
))  # fmt: skip
"""`medmesh` is here because code that reaches into the worker can change what the worker does."""
_READING = frozenset((
    "fromfile", "genfromtxt", "load", "loadtxt", "memmap", "open_memmap", "save", "savetxt", "savez", "savez_compressed",
    "tofile",
))  # fmt: skip
_MAKING = frozenset((
    "__import__", "compile", "delattr", "eval", "exec", "globals", "locals", "setattr", "vars",
))  # fmt: skip
_UNDER = frozenset((
    "__all__", "__annotations__", "__call__", "__doc__", "__eq__", "__file__", "__getitem__", "__hash__", "__init__", "__iter__",
    "__len__", "__main__", "__name__", "__post_init__", "__repr__", "__slots__", "__version__",
))  # fmt: skip
_NATIVE = (".so", ".pyd", ".dll", ".dylib", ".pyc", ".pyo", ".pth", ".egg", ".whl")


@dataclass
class Found:
    """Each kind of capability to the places (file:line) where it shows; `imports` by module."""

    imports: dict[str, list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    network: list[str] = field(default_factory=list)
    dynamic: list[str] = field(default_factory=list)


def read(package: Package) -> Found:
    """What the code of a package shows. Raises `Problem` (`package.code`) for what is no Python."""
    found, files = Found(), package.files
    own = {PurePosixPath(name).parts[0].removesuffix(".py") for name in files}
    for name, content in sorted(files.items()):
        if name.endswith(_NATIVE):
            found.dynamic.append(name)
        elif name.endswith(".py"):
            _Reader(name, found, own - {MANIFEST}).look(content)
    return found


def check(package: Package) -> Found:
    """What a package's code shows, all of which it declares. Raises `Problem` (`package.network`, `package.undeclared`) with the place."""
    found, declared = read(package), package.manifest.code
    if found.network:
        raise Problem("package.network", place=found.network[0])
    allowed = PLAIN | set(declared.imports) | set(package.manifest.entries)
    for module, places in sorted(found.imports.items()):
        if module not in allowed:
            raise Problem("package.undeclared", what=f"imports {module}", place=places[0])
    for kind in ("files", "processes", "dynamic"):
        places = getattr(found, kind)
        if places and not getattr(declared, kind):
            raise Problem("package.undeclared", what=kind, place=places[0])
    return found


def explain(manifest: Manifest, language: str = "en") -> list[str]:
    """What a package's code declares, in plain words, a sentence a line."""
    zh, code = language == "zh", manifest.code
    if not manifest.custom:
        return ["本训练包不含代码：模型由所列各层构成。" if zh else "This package has no code: its model is made of the layers it lists."]
    needs = {
        "imports " + ", ".join(code.imports): ("导入模块 " + "、".join(code.imports), bool(code.imports)),
        "reads or writes files of its sandbox": ("读写沙箱内文件", code.files),
        "starts processes or calls system libraries": ("启动进程或调用系统库", code.processes),
        "makes code while it runs, which no reader can see": ("运行时生成代码，静态审查不可见", code.dynamic),
    }
    said = [(en, chinese) for en, (chinese, given) in needs.items() if given]
    if zh:
        return [f"本训练包含自有代码；声明的能力：{'；'.join(chinese for _, chinese in said) or '仅限运算'}。无网络。"]
    return [f"This package has code of its own. It declares: {'; '.join(en for en, _ in said) or 'arithmetic only'}. It has no network."]


class _Reader(ast.NodeVisitor):
    """Reads one file."""

    def __init__(self, name: str, found: Found, own: set[str]) -> None:
        self._name, self._found, self._own = name, found, own

    def look(self, content: bytes) -> None:
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Problem("package.code", place=f"{self._name}:{getattr(error, 'lineno', 0) or 0}") from None
        try:
            self.visit(tree)
        except RecursionError:
            raise Problem("package.code", place=self._name) from None

    def _at(self, node: ast.AST) -> str:
        return f"{self._name}:{getattr(node, 'lineno', 0)}"

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._module(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module:
            self._module(node.module, node)
            for alias in node.names:
                self._named(alias.name, node, imported=True)

    def _module(self, name: str, node: ast.AST) -> None:
        top, place = name.partition(".")[0], self._at(node)
        if top in self._own and top not in sys.stdlib_module_names:
            return
        self._found.imports.setdefault(top, []).append(place)
        for modules, kind in ((NETWORK, "network"), (FILES, "files"), (PROCESSES, "processes"), (DYNAMIC, "dynamic")):
            if top in modules:
                getattr(self._found, kind).append(place)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in _MAKING:
            self._found.dynamic.append(self._at(node))
        if node.id == "open":
            self._found.files.append(self._at(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._named(node.attr, node)
        self.generic_visit(node)

    def _named(self, name: str, node: ast.AST, *, imported: bool = False) -> None:
        if name in _READING:
            self._found.files.append(self._at(node))
        if name in _MAKING and imported:
            self._found.dynamic.append(self._at(node))
        if name.startswith("__") and name.endswith("__") and name not in _UNDER:
            self._found.dynamic.append(self._at(node))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and not _constant(node.args):
            self._found.dynamic.append(self._at(node))
        self.generic_visit(node)


def _constant(arguments: list[ast.expr]) -> bool:
    """Whether the name that getattr is asked for stands there."""
    return len(arguments) > 1 and isinstance(arguments[1], ast.Constant) and not str(arguments[1].value).startswith("__")


def difference(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    """The files of two packages compared, as a unified diff, a line each; of what is no text, that it differs."""
    import difflib

    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        try:
            lines, changed = ((part or b"").decode().splitlines() for part in (old, new))
        except UnicodeDecodeError:
            yield f"--- {name}: differs, and is no text"
            continue
        before_, after_ = ("/dev/null" if old is None else f"a/{name}", "/dev/null" if new is None else f"b/{name}")
        yield from difflib.unified_diff(lines, changed, before_, after_, lineterm="", n=2)
