"""Methods: gradient transforms, each a callback."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

from lightning_znorm._lightning import Callback, find_classes
from lightning_znorm.compare.identity.values import describe, identify_code
from lightning_znorm.compare.question.syntax import parse_value, split_outside_brackets
from lightning_znorm.errors import ArgumentValueError, ZNormError, did_you_mean, join_names

# callbacks of the methods with a short name, and the arguments that define them
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("lightning_znorm.GradientClipping", {}),
    "gc": ("lightning_znorm.GradientCentralization", {}),
    "scale": ("lightning_znorm.ZNorm", {"center": False}),
    "znorm": ("lightning_znorm.ZNorm", {}),
}
_NAMES = ("none", *METHODS)


@dataclass(frozen=True)
class Method:
    """A gradient transform.

    Attributes:
        label: Name in the report.
        class_path: Class path of the callback, ``None`` for none.
        init_args: Arguments of the callback.
        callbacks: Callbacks that were passed as objects (from Python only).

    """

    label: str
    class_path: str | None = None
    init_args: Mapping[str, Any] = field(default_factory=dict)
    callbacks: tuple[Callback, ...] = ()

    @classmethod
    def of_identity(cls, label: str, identity: Mapping[str, Any]) -> "Method":
        """Return a method that names runs, and cannot make them, for a report."""
        method = cls(label)
        vars(method)["identity"] = dict(identity)  # where the property would keep it
        return method

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What distinguishes this method from others, for JSON."""
        module = (self.class_path or "").rpartition(".")[0]
        code = identify_code([module] if module else [])
        return {
            "class_path": self.class_path,
            "init_args": dict(self.init_args),
            "callbacks": [describe(callback) for callback in self.callbacks],
            **({"code": code} if code else {}),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the cached identity: another process has to find it itself."""
        return {name: value for name, value in vars(self).items() if name != "identity"}

    def make_flags(self) -> list[str]:
        """Return the options of ``fit`` for this method."""
        if self.class_path is None:
            return []
        callback = {"class_path": self.class_path, "init_args": dict(self.init_args)}
        return [f"--trainer.callbacks+={json.dumps(callback)}"]

    def make_callbacks(self) -> list[Any]:
        """Return the callbacks for a Trainer; raise ``ValueError`` if an argument is wrong."""
        if self.class_path is None:
            return list(self.callbacks)
        cls = _find_callback(self.class_path, self.label)
        try:
            return [cls(**self.init_args)]
        except (TypeError, ValueError) as error:
            is_own = any(self.class_path == class_path for class_path, _ in METHODS.values())
            if is_own and not isinstance(error, ZNormError):
                raise  # a bug of this package
            raise ArgumentValueError(f"Method `{self.label}`: {error}") from error


def parse_methods(methods: str | Sequence[str]) -> list[Method]:
    """Parse a list of methods, separated by commas; raise ``ValueError`` if one is unknown, repeated or wrong.

    Example::

        >>> [method.label for method in parse_methods("none,clip(max_norm=0.5),znorm(min_ndim=2)")]
        ['none', 'clip(max_norm=0.5)', 'znorm(min_ndim=2)']

    """
    entries = [methods] if isinstance(methods, str) else methods
    labels = [label for entry in entries for label in split_outside_brackets(entry, ",")]
    if not labels:
        raise ArgumentValueError(
            "Expected argument `methods` to name at least one method, such as none,znorm, but it is empty."
        )
    for label in labels:
        if labels.count(label) > 1:
            raise ArgumentValueError(f"Argument `methods` names `{label}` {labels.count(label)} times. Name it once.")
    parsed = [_parse_method(label) for label in labels]
    for method in parsed:
        method.make_callbacks()
    return parsed


def label_methods(methods: Mapping[str, Any]) -> list[Method]:
    """Make methods of a mapping of labels to callbacks or text; raise ``ValueError`` if one is neither, or wrong."""
    labelled = []
    for label, value in methods.items():
        if not isinstance(label, str) or not label.strip():
            raise ArgumentValueError(
                f"Expected the keys of argument `methods` to be names of the methods, but got {label!r}."
            )
        if value is None or isinstance(value, str):
            (method,) = parse_methods(value or "none")
            labelled.append(Method(label, method.class_path, method.init_args))
            continue
        callbacks = (value,) if _is_callback(value) else tuple(value)
        for callback in callbacks:
            if not _is_callback(callback):
                raise ArgumentValueError(
                    f"Expected argument `methods` to map {label!r} to a callback, a list of callbacks, text such as"
                    f" 'znorm(min_ndim=2)' or None, but got {callback!r}."
                )
        labelled.append(Method(label, callbacks=callbacks))
    return labelled


def _parse_method(label: str) -> Method:
    match = re.fullmatch(r"([\w.]+)(?:\((.*)\))?", label, re.DOTALL)
    if match is None:
        raise ArgumentValueError(
            f"Argument `methods` contains {label!r}; a method is written `name` or `name(argument=value,…)`."
        )
    name, arguments = match[1], {}
    for pair in split_outside_brackets(match[2] or "", ","):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ArgumentValueError(f"Method `{label}`: {pair!r} is not of the form `argument=value`.")
        arguments[key.strip()] = parse_value(value)
    if name == "none":
        if arguments:
            raise ArgumentValueError(f"Method `{label}`: `none` takes no arguments.")
        return Method(label)
    if name in METHODS:
        class_path, fixed = METHODS[name]
        if fixed.keys() & arguments.keys():
            raise ArgumentValueError(
                f"Method `{label}`: `{name}` is {class_path.rpartition('.')[2]} with"
                f" {', '.join(f'{key}={value}' for key, value in fixed.items())}. Leave that out or use another method."
            )
        return Method(label, class_path, {**fixed, **arguments})
    if "." not in name:
        raise ArgumentValueError(
            f"Argument `methods` has an unknown method {name!r}.{did_you_mean(name, _NAMES)} Known are"
            f" {join_names(_NAMES)}; name any other callback by its class path, such as"
            " `my_package.MyCallback(argument=1)`."
        )
    return Method(label, name, arguments)


def _find_callback(class_path: str, label: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentValueError(f"Method `{label}`: `{class_path}` cannot be imported: {error}.") from error
    if not isinstance(cls, type) or not issubclass(cls, find_classes("callbacks", "Callback")):
        raise ArgumentValueError(f"Method `{label}`: `{class_path}` is not a callback of Lightning.")
    return cls


def _is_callback(value: Any) -> bool:
    return isinstance(value, find_classes("callbacks", "Callback"))
