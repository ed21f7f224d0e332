from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.decode import Measured, pass_over
from benchmarks.growth import tiny
from benchmarks.rounds import Results, Setup


def _measured(path: Path, figure: dict[str, float], passes: int) -> Measured:
    setup = Setup("a machine", "3.11.7", {}, "c0de", {"passes": passes}, ["all"])
    return Measured(Results(setup, "2026-11-26", {"all": {0: figure}}, None), [path])


def test_figures_of_a_frame_do_not_depend_on_how_often_a_file_is_decoded() -> None:
    path, once = Path("a.mp4"), {"bare": 0.1, "read": 0.11, "cut": 0.12, "exact": 0.14, "fast": 0.07}
    for passes in (1, 3):
        figure = {f"{way}/{path.name}": passes * cpu_s for way, cpu_s in once.items()} | {f"frames/{path.name}": 100.0}
        measured = _measured(path, figure, passes)
        assert measured.bare_fps(path) == pytest.approx(1000)
        assert measured.more_us(path, "exact", "cut") == pytest.approx(200)
        assert measured.ratio(path, "exact").median == pytest.approx(0.1 / 0.14)


def test_every_way_decodes_every_file_so_many_times(tmp_path: Path) -> None:
    path = tiny(tmp_path / "a.mp4")
    figure = pass_over([path], 2)
    assert all(figure[f"{way}/a.mp4"] > 0 for way in ("bare", "read", "cut", "exact", "fast"))
    measured = _measured(path, figure, 2)
    parts_us = [measured.more_us(path, way, before) for way, before in (("read", "bare"), ("cut", "read"), ("exact", "cut"))]
    assert sum(parts_us) == pytest.approx(measured.more_us(path, "exact", "bare"))
