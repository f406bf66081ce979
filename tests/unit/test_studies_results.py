"""What a study keeps: whole after each cell, found again, and of one version and settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ChatError
from studies.results import Results


def test_cells_are_there_for_whoever_goes_on(tmp_path: Path) -> None:
    first = Results(tmp_path / "study", 1, {"rows": 8})
    assert not first.done("a")
    first.put("a", {"auc": 0.5})
    again = Results(tmp_path / "study", 1, {"rows": 8})
    assert again.done("a")
    assert again.content["cells"] == {"a": {"auc": 0.5}}
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["results.json"]


@pytest.mark.parametrize(("version", "rows"), [(2, 8), (1, 9)])
def test_results_of_another_version_or_other_settings_are_refused(
    tmp_path: Path, version: int, rows: int
) -> None:
    Results(tmp_path, 1, {"rows": 8}).put("a", 1)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ChatError, match=r"results of another (version|settings) .*--out FOLDER"):
        Results(tmp_path, version, {"rows": rows})
    assert (tmp_path / "results.json").read_bytes() == before
