"""CPython's own documentation: the raw source of the text recipes.

In: ``pydoc_data.topics`` and the docstrings of the standard library: of Python modules by parsing
their source (nothing is imported, so nothing runs), of a fixed list of C modules by importing
them. Out: documents (a topic, or all docstrings of one module) and single docstrings. Costs about
6 s for 2.1 million characters, once per process. The words differ between Python 3.11 and 3.12;
which document is held out does not.

A paragraph of 60 characters or more is kept once over all documents, held-out documents first:
topics quote each other at length and docstrings are copied between modules, and without this half
of the held-out text would be in the train text.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from types import ModuleType

from data_recipes.split import Split, mixed_order, split_of
from vltrain.errors import DataError

HELD_OUT_SHARE = 0.05
LICENCE = "PSF-2.0"
ATTRIBUTION = "Text: Python documentation and docstrings, Python Software Foundation"

_LONG_PARAGRAPH_CHARACTERS = 60
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_SKIPPED_FOLDERS |= {"pydoc_data", "site-packages", "dist-packages", "__pycache__"}
_C_MODULES = ("builtins", "math", "cmath", "itertools", "sys", "time", "array", "zlib", "binascii")
_C_MODULES += ("unicodedata", "_operator", "_functools", "_collections", "_io", "_datetime")
_C_MODULES += ("_struct", "select", "gc", "marshal", "_thread", "_codecs", "_csv", "_json")
_C_MODULES += ("_pickle", "_random", "_bisect", "_heapq", "posix")


def version() -> str:
    """Of the interpreter whose files are read."""
    return f"CPython {platform.python_version()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Docstring:
    """``name``: qualified, such as ``json.dumps``. ``what``: module, class or function.
    ``signature``: such as ``(obj, *, skipkeys=False)`` or empty. ``document``: key of the
    document that it is part of."""

    name: str
    what: str
    signature: str
    text: str
    document: str
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    key: str
    split: Split
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


@functools.cache
def docstrings() -> tuple[Docstring, ...]:
    """Every docstring once by name, module by module."""
    found: dict[str, Docstring] = {}
    for module, entries in [*_source_modules(), *_c_modules()]:
        key = "module-" + module.replace(".", "-")
        split = split_of(key, held_out_share=HELD_OUT_SHARE)
        for name, what, signature, text in entries:
            if name not in found:
                found[name] = Docstring(
                    name=name, what=what, signature=signature, text=text, document=key, split=split
                )
    return tuple(found.values())


@functools.cache
def documents() -> tuple[Document, ...]:
    """Topics and modules, in mixed order."""
    whole: dict[str, list[str]] = {
        f"topic-{name.replace('.', '-')}": [text.strip()] for name, text in topics.topics.items()
    }
    for doc in docstrings():
        heading = doc.name + doc.signature
        whole.setdefault(doc.document, []).append(f"{heading}\n\n{doc.text}")
    splits = {key: split_of(key, held_out_share=HELD_OUT_SHARE) for key in whole}
    seen: set[str] = set()
    made = []
    for key in sorted(whole, key=lambda key: (splits[key] is Split.train, key)):
        paragraphs = []
        for paragraph in paragraphs_of("\n\n".join(whole[key])):
            if len(paragraph) >= _LONG_PARAGRAPH_CHARACTERS:
                if paragraph in seen:
                    continue
                seen.add(paragraph)
            paragraphs.append(paragraph)
        if paragraphs:
            made.append(Document(key=key, split=splits[key], paragraphs=tuple(paragraphs)))
    return tuple(sorted(made, key=lambda document: mixed_order(document.key)))


def paragraphs_of(text: str) -> list[str]:
    """Blocks between blank lines, without trailing blanks; indentation is kept."""
    lines = (line.rstrip() for line in text.expandtabs().splitlines())
    return [block.strip("\n") for block in "\n".join(lines).split("\n\n") if block.strip()]


_Entry = tuple[str, str, str, str]  # name, what, signature, text


def _source_modules() -> Iterator[tuple[str, list[_Entry]]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.rglob("*.py"))
    if not files:
        raise DataError(
            f"no Python source under {root}: this interpreter ships without its library's source; "
            "use a Python from python.org, pyenv, conda or a distribution"
        )
    for file in files:
        relative = file.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not relative.parts[0].startswith(
            "config-"
        ):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(file.read_bytes())
            yield module, list(_source_entries(tree, name=module))


def _source_entries(node: ast.AST, *, name: str) -> Iterator[_Entry]:
    """The docstrings of a module or class and of what it defines, in source order."""
    assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    what, signature = "function", ""
    if isinstance(node, ast.Module):
        what = "module"
    elif isinstance(node, ast.ClassDef):
        what = "class"
    else:
        signature = f"({ast.unparse(node.args)})"
    text = ast.get_docstring(node)
    if text:
        yield name, what, signature, text
    if what != "function":
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _source_entries(child, name=f"{name}.{child.name}")


def _c_modules() -> Iterator[tuple[str, list[_Entry]]]:
    for name in _C_MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # posix on Windows; an interpreter built without zlib
        yield name, list(_c_entries(module))


def _c_entries(module: ModuleType) -> Iterator[_Entry]:
    shown = module.__name__.lstrip("_")
    if module.__doc__:
        yield shown, "module", "", inspect.cleandoc(module.__doc__)
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(member) or inspect.isbuiltin(member)):
            continue
        path = name if shown == "builtins" else f"{shown}.{name}"
        yield from _c_entry(member, path=path)
        if inspect.isclass(member):
            for part, value in sorted(vars(member).items()):
                if not part.startswith("_") and callable(value):
                    yield from _c_entry(value, path=f"{path}.{part}")


def _c_entry(member: object, *, path: str) -> Iterator[_Entry]:
    text = getattr(member, "__doc__", None)
    if isinstance(text, str) and text.strip():
        what = "class" if inspect.isclass(member) else "function"
        yield path, what, "", inspect.cleandoc(text)
