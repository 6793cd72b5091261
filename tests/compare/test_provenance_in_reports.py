"""What a report says of the code that made its runs, from results that are made up."""

from pathlib import Path

import pandas as pd
import pytest

from lightning_znorm.compare.files import write_json
from lightning_znorm.compare.identity.provenance import Provenance
from lightning_znorm.compare.report.findings import make_findings
from lightning_znorm.compare.report.pages import write_report
from lightning_znorm.compare.runs.schedule import Schedule
from lightning_znorm.compare.runs.store import Store
from tests.compare.helpers import NEW, OLD, find, question, result


def runs_of(*provenances):
    """Results of one method, each of another code."""
    return [
        result("none", seed, commit=commit, dirty=dirty, versions={"lightning-znorm": version, "torch": "2"})
        for seed, (version, commit, dirty) in enumerate(provenances, start=3)
    ]


def report(results):
    """The caveats, and the line about versions."""
    Path("out").mkdir()
    asked = question(methods="none", sweep=None, confirm=len(results))
    findings = find(asked, results)
    assert findings.is_finished
    write_report(asked, findings, Path("out"), {})
    summary, page = Path("out/summary.md").read_text(), Path("out/report.html").read_text()
    (line,) = [line for line in summary.splitlines() if line.startswith("- lightning-znorm: ")]
    assert line.removeprefix("- lightning-znorm: ") in page
    assert all(caveat in summary for caveat in findings.caveats)
    return findings.caveats, line


def test_report_of_one_state():
    caveats, line = report(runs_of(*3 * [("1.0", OLD, False)]))
    assert not caveats
    assert line == "- lightning-znorm: 1.0 (commit 111111111111)"


def test_uncommitted_changes_alone_are_no_caveat():
    caveats, line = report(runs_of(*3 * [("1.0", OLD, True)]))
    assert not caveats
    assert line == "- lightning-znorm: 1.0 (commit 111111111111, with uncommitted changes)"


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ([("1.0", OLD, False), ("1.0", NEW, False)], "1.0 (commit 111111111111); 1.0 (commit 222222222222)"),
        (
            [("1.0", OLD, True), ("1.0", OLD, False)],
            "1.0 (commit 111111111111, with uncommitted changes); 1.0 (commit 111111111111)",
        ),
        ([("1.0", None, None), ("1.1", None, None)], "1.0; 1.1"),
        ([("1.0", None, None), ("1.0", OLD, False)], "1.0; 1.0 (commit 111111111111)"),
    ],
    ids=["commits", "changes", "versions", "unknown"],
)
def test_runs_of_several_states(states, shown):
    (caveat,), line = report(runs_of(*states, states[0]))
    assert caveat == f"The runs were made by different versions or commits of this package ({shown}); see `runs.csv`."
    assert line == f"- lightning-znorm: {shown.replace('; ', ', ')}"
    frame = pd.read_csv("out/runs.csv", dtype=str, keep_default_na=False)
    rows = frame[["lightning-znorm", "commit", "dirty"]].to_numpy().tolist()
    assert rows == [["" if value is None else str(value) for value in state] for state in [*states, states[0]]]


def test_results_without_a_version(tmp_path):
    asked = question(methods="none", sweep=None, confirm=3)
    store = Store(tmp_path / "out")
    runs = Schedule(asked).plan.runs
    for run in runs:
        write_json(store.get_run_folder(run) / "result.json", result("none", run.seed))
    results = [store.read_result(run) for run in runs]
    assert [result.commit for result in results] == [None] * 3
    findings = make_findings(asked, results)
    assert findings.provenances == [Provenance(None)]
    assert not findings.caveats
    write_report(asked, findings, store.folder, {})
    assert "\n- lightning-znorm: unknown version\n" in (store.folder / "summary.md").read_text()
