"""A configuration, a run and its result, for the tests of the folder that has them."""

from lightning_znorm.compare.question.methods import Method
from lightning_znorm.compare.question.run import Run, Setting
from lightning_znorm.compare.runs.result import RunResult
from tests.compare.helpers import result

CONFIGURATION = {
    "model": {"class_path": "a.B", "init_args": {"lr": 0.1, "sizes": [1, 2]}},
    "trainer": {"max_epochs": 2},
}
RUN = Run(Method("none"), Setting(0, {"lr": 0.1}), 0)
CONTENT = result("none", 0, {"lr": 0.1})
RESULT = RunResult.from_json(RUN, CONTENT)
