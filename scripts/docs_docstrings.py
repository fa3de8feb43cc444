"""Extension of Griffe for the API reference: show Sphinx roles as code, and the options that a TypedDict names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Class, ExprName, ExprSubscript, Extension, Function, Module, Object, Parameter, ParameterKind

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class Docstrings(Extension):  # type: ignore[misc, unused-ignore]
    """Prepare the docstrings and signatures of a package for its reference."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Show each role, such as :class:`lamella.Limit`, as code."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Replace ``**options: Unpack[Options]`` by the keywords of ``Options``, unless the docstring explains it."""
        for function in _functions(pkg):
            for parameter in list(function.parameters):
                if (options := _typed_dict(parameter)) and not _explains(function, parameter.name):
                    position = list(function.parameters).index(parameter)
                    keywords = [
                        Parameter(name, annotation=each.annotation, kind=ParameterKind.keyword_only, default="...")
                        for name, each in _attributes(options)
                    ]
                    function.parameters._params[position : position + 1] = keywords


def _functions(within: Module | Class) -> Iterator[Function]:
    for member in within.members.values():
        if member.is_alias:
            continue
        if isinstance(member, Function):
            yield member
        elif isinstance(member, Module | Class):
            yield from _functions(member)


def _explains(function: Function, name: str) -> bool:
    texts = [each.docstring.value for each in (function, function.parent) if each and each.docstring]
    return any(re.search(rf"^ +{name}: ", text, re.MULTILINE) for text in texts)


def _typed_dict(parameter: Parameter) -> Class | None:
    annotation = parameter.annotation
    if parameter.kind is not ParameterKind.var_keyword or not isinstance(annotation, ExprSubscript):
        return None
    named = annotation.slice
    if not isinstance(named, ExprName) or not isinstance(named.parent, Object):
        return None
    found = named.parent.modules_collection[named.canonical_path]
    return found.final_target if found.is_alias else found  # type: ignore[no-any-return, unused-ignore]


def _attributes(options: Class) -> Iterator[tuple[str, Any]]:
    for base in options.resolved_bases:
        if isinstance(base, Class):
            yield from _attributes(base)
    yield from options.attributes.items()
