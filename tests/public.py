"""The public names, read from the source: what must be documented, typed and in the reference."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio_httptrack.config
import trio_httptrack.opentelemetry
import trio_httptrack.prometheus
import trio_httptrack.status
import trio_httptrack.testing

MODULES = [
    trio_httptrack,
    trio_httptrack.config,
    trio_httptrack.opentelemetry,
    trio_httptrack.prometheus,
    trio_httptrack.status,
    trio_httptrack.testing,
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Public:
    """A public name: a function, a class or a value of a module, or an attribute of a class."""

    path: str
    doc: str
    raised: set[str]
    """The exceptions that its own code raises by name."""

    is_attribute: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def public_names() -> list[Public]:
    """All of them."""
    package = Path(trio_httptrack.__file__).parent
    files = {path: ast.parse(path.read_text()) for path in package.rglob("*.py")}
    definitions = {
        node.name: node
        for tree in files.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef | Function)
    }
    found: list[Public] = []
    for module in MODULES:
        values = documented(files[Path(module.__file__ or "")].body)
        for name in module.__all__:
            path = f"{module.__name__}.{name}"
            node = definitions.get(name)
            if isinstance(node, ast.ClassDef):
                found += from_class(path, node)
            elif node is not None:
                found.append(Public(path, ast.get_docstring(node) or "", raised(node)))
            else:
                found.append(Public(path, values[name], set()))
    return found


def from_class(path: str, node: ast.ClassDef) -> Iterator[Public]:
    functions = {each.name: each for each in node.body if isinstance(each, Function)}
    made = functions.get("__init__")
    yield Public(path, ast.get_docstring(node) or "", raised(made) if made else set())
    values = documented(made.body, of="self.") if made else {}
    values |= documented(node.body)
    for name in sorted({*values, *functions}):
        if not name.startswith("_"):
            function = functions.get(name)
            doc = ast.get_docstring(function) if function else None
            errors = raised(function) if function else set()
            yield Public(f"{path}.{name}", doc or values.get(name, ""), errors, is_attribute=True)


def documented(body: list[ast.stmt], of: str = "") -> dict[str, str]:
    """What is assigned here, with the docstring that follows it or stands in ``__slots__``."""
    found: dict[str, str] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign):
            target, *_ = node.targets
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        name = ast.unparse(target)
        if not name.startswith(of):
            continue
        name = name.removeprefix(of)
        match following:
            case ast.Expr(value=ast.Constant(value=str(doc))):
                found[name] = doc
            case _:
                found.setdefault(name, "")
        if name == "__slots__" and isinstance(node.value, ast.Dict):
            slots = ast.literal_eval(node.value)
            found |= {slot: doc for slot, doc in slots.items() if doc is not None}
    return found


def raised(node: ast.AST) -> set[str]:
    return {
        ast.unparse(each.exc.func if isinstance(each.exc, ast.Call) else each.exc)
        for each in ast.walk(node)
        if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call | ast.Name)
    }
