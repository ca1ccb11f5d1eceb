"""The verdict at the top of a result: readable in every theme, with links to what shows its reasons."""

from __future__ import annotations

import json
import re

import pytest
from NePhiRegistrationLib import theme
from NePhiRegistrationLib.choices import View
from test_result import _drawn


@pytest.mark.parametrize("outcome, words", [("PASS", "Reliable."), ("CHECK", "Check."), ("FAIL", "Not reliable.")])
def test_verdict_stands_on_a_ground_of_its_own_and_leads_to_what_it_means(finished, outcome, words):
    ui, report = finished.ui, finished.outputs.report
    reasons = ["The map folds in 9 voxels (2 %).", "The expected error is 9 mm <on average>."]
    report["verdict"] |= {"outcome": outcome, "reasons": reasons}
    finished.outputs.report_text.SetText(json.dumps(report))
    finished.widget._update()
    text, style = ui.verdictLabel.text, ui.verdictLabel.styleSheet
    assert ui.verdictLabel.visible and words in text and "&lt;on average&gt;" in text
    colors = [tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in re.findall(r"#\w{6}", style)]
    assert theme.contrast(*colors) >= 4.5  # whatever the theme
    assert re.findall(r'href="(\w+)"', text) == ["folds", "error"]
    ui.tablesTabWidget.setCurrentIndex(0)
    finished.widget.results._look_at("folds")
    assert ui.tablesTabWidget.currentIndex == 1
    finished.widget.results._look_at("landmarks")
    assert ui.tablesTabWidget.currentWidget() is ui.landmarksTab
    finished.widget.results._look_at("error")
    assert finished.p.view is View.ERROR and _drawn(View.ERROR) is not None
    ui.beyondCheckBox.click()
    assert _drawn(View.ERROR).GetDisplayNode().GetLowerThreshold() > 0


def test_result_from_before_there_were_verdicts(finished):
    report = finished.outputs.report
    del report["verdict"], report["error_estimate_mm"]
    finished.outputs.report_text.SetText(json.dumps(report))
    finished.widget._update()
    assert not finished.ui.verdictLabel.visible and finished.ui.summaryLabel.text
