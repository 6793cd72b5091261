"""Errors of jsonargparse in a line or two."""

import re
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning_znorm.errors import did_you_mean

_CLASS_PATH = re.compile(r"Problem with given class_path '(.+)':$")
_CALLABLE = re.compile(r"(?m)^([ -]*)Type typing\.Callable\[.*\] expects a function or a callable class: ")
_CALLABLE_VALUE = re.compile(r"(?:Got|Given) value: (?:Namespace\(class_path='([^']+)'|([\w.]+)$)", re.MULTILINE)
_EXPECTED = re.compile(r"Expected an? (?:<class '(.+?)'>|typing\.Literal\[(.+?)\])(?:\. Got value: (.*))?$")
_GIVEN = re.compile(r"Given value: (.*)$")
_KEY = re.compile(r'Parser key "(.+?)"( element \d+)?: ?')
_UNREADABLE = re.compile(r"""Parser key "(.+?)":\s+Unable to load config ['"](.+?)['"]""")
_WRONG_CLASS = re.compile(r"subclass of (Lightning\w*Module) \(([\w.]+)\.(\w+)\)$")
_NOISE = re.compile(
    r"Does not validate against any|Subtypes: |Errors:$|Given value type: |Expected a path but .* invalid$|"
    r"Given value: NestedArg|$"
)


def shorten(message: str, parser: Any) -> str:
    """Return what is wrong and, for a misspelt name, the nearest one.

    Args:
        message: As jsonargparse writes it, of many lines where a value may be of several types.
        parser: The parser that found it.

    """
    if names := _match(r"unrecognized arguments: (.*)", message):
        options = [word.partition("=")[0] for word in names.split() if word.startswith("-")]
        hints = "".join(suggest_key(option, _options(parser)) for option in options[:1])
        return f"unrecognized arguments: {names}.{hints}"
    if key := _match(r".*(?:does not accept option|Option) '([^']+)'.*", message):
        group = _match(r"Group '([^']+)'.*", message)
        key = f"{group}.{key}" if group else key
        known = [option.removeprefix("--") for option in _options(parser)]
        return f"there is no option `{key}`.{suggest_key(key, known)}"
    if names := _match(r"the following arguments are required: (.*)", message):
        required = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names.split(", ")]
        if required == ["model"]:
            return (
                "A model is needed: its class (`--model my_module.MyModel`), or a file that names it (`--config FILE`)."
            )
        return f"these options are needed: {', '.join(f'--{name}' for name in required)}."
    if message.startswith('expected "subcommand"'):
        return "A command is needed (fit, validate, test, predict, compare), as in `lightning-znorm fit --config FILE`."
    if (file := _UNREADABLE.match(message)) and not Path(file[2]).exists():
        return f"`{file[1]}`: there is no file {file[2]!r}."
    lines = _name_classes_of_callables(message).splitlines()
    problem = _KEY.sub(r"`\1`\2: ", _explain([line for line in lines if line.strip()]))
    return problem + _suggest_package(problem)


def suggest_key(key: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest of the known keys, in the same group if there is such a group.

    Example::

        >>> suggest_key("--znorm.epss", ["--znorm.eps", "--znorm.enabled", "--trainer.max_steps"])
        " Did you mean '--znorm.eps'?"

    """
    group, _, name = key.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == group]
    if not siblings:
        return did_you_mean(key, known)
    return did_you_mean(key, siblings) if did_you_mean(name, [other.rpartition(".")[2] for other in siblings]) else ""


def _suggest_package(problem: str) -> str:
    """Return a hint where a module or datamodule is of the other Lightning package."""
    wrong = _WRONG_CLASS.search(problem)
    cls = getattr(sys.modules.get(wrong[2]), wrong[3], None) if wrong else None
    bases = [base for base in getattr(cls, "__mro__", ()) if wrong and base.__name__ == wrong[1]]
    packages = [base.__module__.partition(".core.")[0] for base in bases]
    return f". It is of {packages[0]}: add `--package {packages[0]}`." if packages else ""


def _match(pattern: str, text: str) -> str:
    found = re.fullmatch(pattern, text)
    return found[1] if found else ""


def _options(parser: Any) -> list[str]:
    """Return the options of a parser and of its subcommands."""
    subcommands = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subcommands.choices.values() if subcommands else ())]
    return [option for each in parsers for option in each._option_string_actions if not option.endswith("+")]


def _name_classes_of_callables(message: str) -> str:
    """Write what is wrong with the class of a `Callable`, such as an optimizer, as it is written of other classes."""
    while found := _CALLABLE.search(message):
        value = _CALLABLE_VALUE.search(message, found.end())
        indent = " " * len(found[1])
        before, after = message[: found.start()], re.sub(r"\. Got value: .*", "", message[found.end() :], count=1)
        name = (value[1] or value[2]) if value else ""
        message = f"{before}{indent}Problem with given class_path '{name}':\n{indent}  {after}"
    return message


def _explain(lines: Sequence[str]) -> str:
    """Reduce a tree of alternatives to the one that says most: a class that was named, else what was expected."""
    for position, line in enumerate(lines):
        if found := _CLASS_PATH.search(line):
            indent = _indent(line)
            body = takewhile(lambda other: _indent(other) > indent, lines[position + 1 :])  # noqa: B023
            key = next(filter(None, (_KEY.match(other.lstrip()) for other in lines[:position])), None)
            problem = _name_remedy(found[1], _explain([*body]))
            return (key[0] if key else "") + (problem if found[1] in problem else f"{found[1]}: {problem}")
    texts = list(dict.fromkeys(text for text in (line.strip(" -") for line in lines) if not _NOISE.match(text)))
    types: list[str] = []
    others: list[str] = []
    given = path = ""
    for text in texts:
        if expected := _EXPECTED.match(text):
            if expected[1] != "NoneType":
                types += (expected[1] or expected[2]).split(", ")
            given = expected[3] or given
        elif name := _match(r"Expected a dot import path string: (.*)", text):
            path = f"expected the import path of a class or a function, but got {name!r}"
        elif value := _GIVEN.match(text):
            given = textwrap.shorten(value[1], 100)
        else:
            others.append(text)
    if types:
        choice = " or ".join(types) if len(types) < 4 else f"one of {', '.join(types)}"
        others.append(f"expected {choice}" + (f", but got {given!r}" if given else ""))
    elif path:
        others.append(path)
    elif given and given not in " ".join(others):
        others.append(f"({given})")
    return " ".join(others)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _name_remedy(class_path: str, problem: str) -> str:
    """Add the nearest name that the module or the class has."""
    module, _, _ = class_path.rpartition(".")
    if name := _match(r"module '.+' has no attribute '(.+)'", problem):
        return f"{problem}.{did_you_mean(name, dir(sys.modules.get(module)))}"
    if name := _match(r"(?:Option '|unrecognized arguments: --)([\w.-]+).*", problem):
        return f"there is no argument `{name}`.{suggest_key(name, _arguments(class_path))}"
    if names := _match(r"the following arguments are required: (.*)", problem):
        return f"these arguments are needed: {names}."
    return problem


def _arguments(class_path: str) -> list[str]:
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    arguments: list[str] = ArgumentParser().add_class_arguments(cls, fail_untyped=False)
    return arguments
