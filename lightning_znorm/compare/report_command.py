"""The command ``lightning-znorm report``."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lightning_znorm.compare.question.question import Question
from lightning_znorm.compare.report.findings import Findings, make_findings
from lightning_znorm.compare.report.layout import make_overview
from lightning_znorm.compare.report.pages import find_report_files, render_answer, to_markdown, write_report
from lightning_znorm.compare.runs.manifest import require_manifest
from lightning_znorm.compare.runs.result import RunResult
from lightning_znorm.compare.runs.schedule import Schedule
from lightning_znorm.compare.runs.store import Store
from lightning_znorm.errors import ArgumentValueError

_DESCRIPTION = """Make the report of a comparison anew from its folder, also while `lightning-znorm compare` is at work
in it, and print its answer; of several folders, print an overview."""


def run_report(args: Sequence[str]) -> None:
    """Run ``lightning-znorm report`` with the arguments that follow the word ``report``."""
    parser = ArgumentParser(prog="lightning-znorm report", description=_DESCRIPTION)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="the folder of a comparison (`--compare.out`)")
    folders = [Path(folder) for folder in parser.parse_args(args).folders]
    stores = [Store(folder) for folder in folders]
    questions = [_read_question(store) for store in stores]
    made = [(question, make_report(store, question)) for store, question in zip(stores, questions, strict=True)]
    if len(made) == 1:
        print(render_answer(*made[0]))
        print("\n" + "\n".join(str(path) for path in find_report_files(stores[0].folder)))
        return
    rows = [
        make_overview(question, findings).assign(folder=str(folder))
        for folder, (question, findings) in zip(folders, made, strict=True)
    ]
    overview = pd.concat(rows)
    print(to_markdown(overview[["folder", *overview.columns.drop("folder")]]))


def make_report(store: Store, question: Question) -> Findings:
    """Write the report of a folder, and return its findings."""
    contents = store.read_named_results()
    results = Schedule(question).load(lambda run: RunResult.from_json(run, contents.get(str(run))))
    if not results:
        raise _refuse_empty(store)
    findings = make_findings(question, results, store.read_planned())
    write_report(question, findings, store.folder, store.read_about())
    return findings


def _read_question(store: Store) -> Question:
    require_manifest(store.folder)
    content = store.read_question()
    if not content:
        raise _refuse_empty(store)
    return Question.from_json(content)


def _refuse_empty(store: Store) -> ArgumentValueError:
    return ArgumentValueError(f"`{store.folder}` has no finished run yet. Wait for the first one.")
