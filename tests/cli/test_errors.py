"""Which errors the command prints in a line, and which keep their traceback."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_znorm import GradientMonitor, ZNormError
from lightning_znorm.__main__ import main
from tests import warm

EXAMPLES = Path(__file__).parents[2] / "examples"
BORING = "lightning.pytorch.demos.boring_classes.BoringModel"
QUIET = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False}


class Failing(BoringModel):
    """A module of the user's, which fails when it is made."""

    def __init__(self, how: str = "value"):
        super().__init__()
        if how == "value":
            raise ValueError("my value")
        if how == "type":
            raise TypeError("my type")
        try:
            GradientMonitor(max_records=0)
        except ZNormError:
            if how == "while handling":
                raise KeyError("my key")  # noqa: B904
            raise LookupError("my key") from None


def write(**content):
    Path("config.yaml").write_text(yaml.safe_dump({"model": BORING, "trainer": QUIET, **content}))


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config=config.yaml", *args])
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_argument_of_the_group_in_a_file(capsys):
    write(znorm={"start_step": -1})
    message = "Expected argument `start_step` to be an integer of at least 0, but got -1."
    assert refusal(capsys) == f"lightning-znorm: error: {message}"


def test_a_wrong_argument_of_a_callback_in_a_file(capsys):
    """jsonargparse raises an error of its own because of it."""
    callback = {"class_path": "lightning_znorm.ZNorm", "init_args": {"start_step": -1}}
    write(trainer={**QUIET, "callbacks": [callback]})
    message = "Expected argument `start_step` to be an integer of at least 0, but got -1."
    assert refusal(capsys) == f"lightning-znorm: error: {message}"


def test_a_wrong_argument_of_a_datamodule_in_a_file(capsys):
    write(data={"class_path": "lightning_znorm.vision.Digits", "init_args": {"image_size": 2}})
    message = "Expected argument `image_size` to be an integer of at least 8, but got 2."
    assert refusal(capsys) == f"lightning-znorm: error: {message}"


def test_an_extra_that_an_object_misses(capsys, monkeypatch):
    monkeypatch.setattr("lightning_znorm.errors.find_spec", lambda name: None if name == "sklearn" else name)
    write(data="lightning_znorm.vision.Digits")
    assert refusal(capsys) == (
        "lightning-znorm: error: `Digits` needs scikit-learn, which is not installed. Install it: `pip install"
        ' "lightning-znorm[demo]"`.'
    )


@pytest.mark.parametrize(
    ("how", "message"), [("value", "my value"), ("type", "my type"), ("while handling", "my key"), ("after", "my key")]
)
def test_errors_of_the_users_code_keep_their_traceback(how, message):
    write(model={"class_path": f"{__name__}.Failing", "init_args": {"how": how}})
    with pytest.raises((ValueError, TypeError, LookupError), match=message) as caught:
        main(["fit", "--config=config.yaml"])
    assert not isinstance(caught.value, ZNormError)


PLANTED = """
import {module} as module
from lightning_znorm.__main__ import main
module.{name} = None  # so that the package itself raises "TypeError: 'NoneType' object is not callable"
main({args!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "module", "name"),
    [
        (["fit", f"--model={BORING}"], "lightning_znorm.cli.parser", "make_cli_class"),
        (["fit", f"--model={BORING}", "--znorm"], "lightning_znorm.engine.transform", "require_count"),
        (["compare", f"--model={BORING}", "--compare.mode=min"], "lightning_znorm.compare.command", "parse_question"),
        (["compare", f"--model={BORING}", "--compare.mode=min"], "lightning_znorm.engine.transform", "require_count"),
    ],
)
def test_mistakes_of_the_package_keep_their_traceback(args, module, name):
    done = warm.run("-c", PLANTED.format(module=module, name=name, args=args))
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") or "\nTraceback" in done.stderr
    assert done.stderr.endswith("TypeError: 'NoneType' object is not callable\n")
