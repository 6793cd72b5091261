"""Short versions of jsonargparse's errors."""

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
_VALUE = re.compile(r"Given value: (.*)$")
_KEY = re.compile(r'Parser key "(.+?)"( element \d+)?: ?')
_UNREADABLE = re.compile(r"""Parser key "(.+?)":\s+Unable to load config ['"](.+?)['"]""")
_WRONG_CLASS = re.compile(r"subclass of (Lightning\w*Module) \(([\w.]+)\.(\w+)\)$")
_NOISE = re.compile(
    r"Does not validate against any|Subtypes: |Errors:$|Given value type: |Expected a path but .* invalid$|"
    r"Given value: NestedArg|$"
)


def shorten(message: str, parser: Any) -> str:
    """Return a short error with, for a misspelt name, the nearest one.

    Args:
        message: The error of jsonargparse, with many lines if a value may be of several types.
        parser: The parser that raised it.

    """
    if names := _capture(r"unrecognized arguments: (.*)", message):
        options = [word.partition("=")[0] for word in names.split() if word.startswith("-")]
        hints = "".join(suggest_key(option, _list_options(parser)) for option in options[:1])
        return f"unrecognized arguments: {names}.{hints}"
    if key := _capture(r".*(?:does not accept option|Option) '([^']+)'.*", message):
        group = _capture(r"Group '([^']+)'.*", message)
        key = f"{group}.{key}" if group else key
        keys = [option.removeprefix("--") for option in _list_options(parser)]
        return f"there is no option `{key}`.{suggest_key(key, keys)}"
    if names := _capture(r"the following arguments are required: (.*)", message):
        required = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in names.split(", ")]
        if required == ["model"]:
            return (
                "A model is missing: pass its class (`--model my_module.MyModel`) or a file that names it"
                " (`--config FILE`)."
            )
        return f"these options are required: {', '.join(f'--{name}' for name in required)}."
    if message.startswith('expected "subcommand"'):
        return (
            "A command is missing (fit, validate, test, predict, compare), as in `lightning-znorm fit --config FILE`."
        )
    if (file := _UNREADABLE.match(message)) and not Path(file[2]).exists():
        return f"`{file[1]}`: there is no file {file[2]!r}."
    lines = _name_classes_of_callables(message).splitlines()
    problem = _KEY.sub(r"`\1`\2: ", _explain([line for line in lines if line.strip()]))
    return problem + _suggest_package(problem)


def suggest_key(key: str, choices: Sequence[str]) -> str:
    """Return a hint at the nearest choice, only in the same group if there is such a group.

    Example::

        >>> suggest_key("--znorm.epss", ["--znorm.eps", "--znorm.enabled", "--trainer.max_steps"])
        " Did you mean '--znorm.eps'?"

    """
    group, _, name = key.rpartition(".")
    siblings = [other for other in choices if other.rpartition(".")[0] == group]
    if not siblings:
        return did_you_mean(key, choices)
    return did_you_mean(key, siblings) if did_you_mean(name, [other.rpartition(".")[2] for other in siblings]) else ""


def _suggest_package(problem: str) -> str:
    """Return a hint if a module or datamodule belongs to the other Lightning package."""
    match = _WRONG_CLASS.search(problem)
    cls = getattr(sys.modules.get(match[2]), match[3], None) if match else None
    bases = [base for base in getattr(cls, "__mro__", ()) if match and base.__name__ == match[1]]
    packages = [base.__module__.partition(".core.")[0] for base in bases]
    return f". It belongs to {packages[0]}: add `--package {packages[0]}`." if packages else ""


def _capture(pattern: str, text: str) -> str:
    match = re.fullmatch(pattern, text)
    return match[1] if match else ""


def _list_options(parser: Any) -> list[str]:
    """Return the options of a parser and of its subcommands."""
    subcommands = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subcommands.choices.values() if subcommands else ())]
    return [option for subparser in parsers for option in subparser._option_string_actions if not option.endswith("+")]


def _name_classes_of_callables(message: str) -> str:
    """Write what is wrong with the class of a `Callable`, such as an optimizer, as it is written of other classes."""
    while match := _CALLABLE.search(message):
        value = _CALLABLE_VALUE.search(message, match.end())
        indent = " " * len(match[1])
        before, after = message[: match.start()], re.sub(r"\. Got value: .*", "", message[match.end() :], count=1)
        name = (value[1] or value[2]) if value else ""
        message = f"{before}{indent}Problem with given class_path '{name}':\n{indent}  {after}"
    return message


def _explain(lines: Sequence[str]) -> str:
    """Reduce a tree of alternatives to the most specific: the class in the value, else the expected types."""
    for position, line in enumerate(lines):
        if match := _CLASS_PATH.search(line):
            indent = _indent(line)
            body = takewhile(lambda other: _indent(other) > indent, lines[position + 1 :])  # noqa: B023
            key = next(filter(None, (_KEY.match(other.lstrip()) for other in lines[:position])), None)
            problem = _suggest_name(match[1], _explain([*body]))
            return (key[0] if key else "") + (problem if match[1] in problem else f"{match[1]}: {problem}")
    texts = list(dict.fromkeys(text for text in (line.strip(" -") for line in lines) if not _NOISE.match(text)))
    types: list[str] = []
    others: list[str] = []
    value = path = ""
    for text in texts:
        if expected := _EXPECTED.match(text):
            if expected[1] != "NoneType":
                types += (expected[1] or expected[2]).split(", ")
            value = expected[3] or value
        elif name := _capture(r"Expected a dot import path string: (.*)", text):
            path = f"expected the import path of a class or a function, but got {name!r}"
        elif match := _VALUE.match(text):
            value = textwrap.shorten(match[1], 100)
        else:
            others.append(text)
    if types:
        choice = " or ".join(types) if len(types) < 4 else f"one of {', '.join(types)}"
        others.append(f"expected {choice}" + (f", but got {value!r}" if value else ""))
    elif path:
        others.append(path)
    elif value and value not in " ".join(others):
        others.append(f"({value})")
    return " ".join(others)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _suggest_name(class_path: str, problem: str) -> str:
    """Add the nearest name in the module or among the arguments of the class."""
    module, _, _ = class_path.rpartition(".")
    if name := _capture(r"module '.+' has no attribute '(.+)'", problem):
        return f"{problem}.{did_you_mean(name, dir(sys.modules.get(module)))}"
    if name := _capture(r"(?:Option '|unrecognized arguments: --)([\w.-]+).*", problem):
        return f"there is no argument `{name}`.{suggest_key(name, _list_arguments(class_path))}"
    if names := _capture(r"the following arguments are required: (.*)", problem):
        return f"these arguments are required: {names}."
    return problem


def _list_arguments(class_path: str) -> list[str]:
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    arguments: list[str] = ArgumentParser().add_class_arguments(cls, fail_untyped=False)
    return arguments
