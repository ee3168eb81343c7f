"""``.. facade:: MODULE``: the public names of a module, each described once, where users import it from."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import latent_mixup as lm
from latent_mixup.augment.base import MixKeywords

HOMES = tuple(  # a thing that several of them have is described in the first
    f"latent_mixup{name}"
    for name in (
        *("", ".functional", ".interpolation", ".augment", ".policies", ".generators", ".bank", ".fitting", ".losses"),
        *(".quality", ".encoders", ".training", ".training.stylegan2", ".inversion", ".pool", ".robustness"),
        *(".integrations", ".integrations.lightning", ".integrations.transformers", ".integrations.timm"),
        *(".bundled", ".images", ".classifiers", ".pictures", ".hub", ".convert"),
    )
)

OTHER_NAMES = "api/other-names"  # the page of what is no public name, and stands in signatures
OTHERS_HAVE = {"Path"}  # names of ours that other projects have as well


def public_names(module: ModuleType) -> list[str]:
    """``__all__``; of a module without it the functions and classes that it defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


@cache
def homes() -> dict[int, str]:
    """Identity of what has a public name => the full name under which it is described."""
    modules = {home: import_module(home) for home in HOMES}
    named = [
        (f"{home}.{name}", getattr(module, name)) for home, module in modules.items() for name in public_names(module)
    ]
    found = {id(module): home for home, module in modules.items()}
    for full_name, value in named:
        found.setdefault(id(value), full_name)
    return found


class Facade(SphinxDirective):
    """The description of a module and its public names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Autodoc for names at home here; a link for names that are described elsewhere."""
        place = self.arguments[0]
        module = import_module(place)
        self.env.note_dependency(inspect.getfile(module))
        lines = [f".. py:module:: {place}", "", f"``{place}``", "", *inspect.getdoc(module).splitlines(), ""]  # type: ignore[union-attr]
        for name in sorted(public_names(module), key=lambda name: inspect.ismodule(getattr(module, name))):
            lines += described(place, name, getattr(module, name))
        return self.parse_text_to_nodes(StringList(lines, place))


def described(place: str, name: str, value: Any) -> list[str]:
    """Lines of reStructuredText for one name of a module."""
    home = homes()[id(value)]
    if inspect.ismodule(value):
        return [f"* :py:mod:`{home}`"]
    kind = "class" if inspect.isclass(value) else "function" if callable(value) else "data"
    if home != f"{place}.{name}":
        return [f".. py:data:: {name}", "   :no-index-entry:", "", f"   The same as :py:obj:`{home}`.", ""]
    if kind == "data":
        return [f".. py:data:: {name}", "", *(f"   {line}" for line in about_value(name)), ""]
    return [f".. auto{kind}:: {place}.{name}", ""]


def about_value(name: str) -> list[str]:
    """The docstring that stands below a constant, wherever in the package it is assigned."""
    for module in [module for module in sys.modules if module.startswith("latent_mixup")]:
        if found := ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name)):
            return found
    return []


def import_for_types(app: Sphinx) -> None:
    """Run the imports under ``if TYPE_CHECKING``, so that every annotation is a type that can be linked."""
    with mock(app.config.autodoc_mock_imports):
        homes()
    for name, module in list(sys.modules.items()):
        if name.startswith("latent_mixup") and name != "latent_mixup":
            for node in ast.parse(inspect.getsource(module)).body:
                if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                    exec(compile(ast.Module(node.body, []), name, "exec"), vars(module))
    for wrapper in (lm.LatentMixupLoader, lm.LatentMixupCollate, lm.LatentMixupDataset):
        names = {**vars(sys.modules[MixKeywords.__module__]), **vars(sys.modules[wrapper.__module__])}
        signature = inspect.signature(wrapper)
        typed = [each.replace(annotation=eval(each.annotation, names)) for each in signature.parameters.values()]
        wrapper.__signature__ = signature.replace(parameters=typed)  # type: ignore[union-attr]


def without_types(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep Napoleon from reading ``Whether it is so: a reason`` as a type and its description."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]
    for number, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            after = lines[number + 1]
            indent = len(after) - len(after.lstrip())
            lines[number + 1] = f"{after[:indent]}: {after[indent:]}"


def shorter(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature without the checks in its annotations, and without what Python calls a default that is made anew."""
    if signature:
        signature = re.sub(r"~?typing\.Annotated\[([\w.~]+), [^\[\]]*\]", r"\1", signature).replace("<factory>", "...")
    return signature, returned


def by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.reference | None:
    """The link of a name that is not found where it stands, if the site describes one thing of that name alone."""
    target: str = node.get("reftarget", "")
    last = target.rsplit(".")[-1]
    if (
        node.get("refdomain") != "py"
        or last in OTHERS_HAVE
        or target.split(".")[0] in {*sys.modules} - {"latent_mixup"}
    ):
        return None
    described = {*homes().values()}
    found = [
        entry
        for name, entry in env.get_domain("py").objects.items()
        if name.rsplit(".")[-1] == last and not entry.aliased and (name in described or entry.docname == OTHER_NAMES)
    ]
    if len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and what autodoc needs for it."""
    app.add_directive("facade", Facade)
    app.connect("builder-inited", import_for_types)
    app.connect("autodoc-process-docstring", without_types, priority=400)  # before Napoleon
    app.connect("autodoc-process-signature", shorter)
    app.connect("missing-reference", by_last_name)
    return {"version": "1", "parallel_read_safe": True}
