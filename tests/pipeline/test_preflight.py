from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.preflight import preflight, resolved
from schemas.config import JobConfig
from schemas.errors import BadRequest
from stages.models import weights
from stages.models.weights import Resolved
from tests.stages.checkpoints import checkpoint


def job(**stages: Any) -> JobConfig:
    return JobConfig.model_validate({"input": {"uri": "/in"}, "output": "/out", **stages})


def test_entries_come_by_stage_in_the_order_given_with_names_and_real_revisions() -> None:
    classifier, clip = str(checkpoint("timesformer")), str(checkpoint("clip"))
    config = job(
        embed={"model": clip},
        classify=[{"model": clip, "labels": ["a", "b"], "name": "mine"}, {"model": classifier, "frames": 4}],
    )
    entries = resolved(config)
    assert [(entry.stage, entry.model, entry.name) for entry in entries] == [
        ("classify", clip, "mine"), ("classify", classifier, "label"), ("embed", clip, "embedding")
    ]  # fmt: skip
    assert [entry.revision for entry in entries] == [weights.resolve(model).revision for model in (clip, classifier, clip)]
    for entry in entries:
        assert entry.fingerprint == entry.config.fingerprint(config.clips.fingerprint(), entry.revision)


def test_other_weights_under_the_same_name_are_another_fingerprint() -> None:
    config = job(embed={"model": str(checkpoint("clip"))})

    def newer(model: str) -> Resolved:
        return replace(weights.resolve(model), revision="newer")

    assert resolved(config)[0].fingerprint != resolved(config, newer)[0].fingerprint


def test_two_entries_that_do_the_same_are_refused() -> None:
    clip = str(checkpoint("clip"))
    with pytest.raises(BadRequest, match=r"embed\.1: does the same as embed\.0; leave one of them out"):
        resolved(job(embed=[{"model": clip}, {"model": clip, "name": "again"}]))
    assert len(resolved(job(embed=[{"model": clip}, {"model": clip, "frames": 2}]))) == 2


def test_a_kind_of_model_that_a_stage_does_not_know_names_the_key() -> None:
    with pytest.raises(BadRequest, match=r"^caption: model .* caption does not know kind '?clip"):
        resolved(job(caption={"model": str(checkpoint("clip"))}))


def test_a_model_that_cannot_be_had_names_key_model_and_preset_and_what_to_do() -> None:
    config = settings.load(preset="standard", input_uri="/in", output="/out")

    def nowhere(model: str) -> Resolved:
        raise BadRequest(f"model {model}: the hub cannot be reached")

    with pytest.raises(BadRequest) as caught:
        resolved(config, nowhere)
    said = str(caught.value)
    assert said.startswith("classify: model facebook/timesformer-base-finetuned-k400: the hub cannot be reached")
    assert "--preset standard takes its models from the hub" in said
    assert "\n" not in said


def test_a_preflight_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    config = JobConfig.model_validate({"input": {"uri": str(tmp_path / "in")}, "output": str(tmp_path / "new" / "out")})
    found = preflight(config)
    assert found.entries == ()
    assert found.clips_fingerprint == config.clips.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_plan_needs_no_output_that_takes_writes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "file").touch()
    config = JobConfig.model_validate({"input": {"uri": str(tmp_path / "in")}, "output": str(tmp_path / "file" / "out")})
    with pytest.raises(BadRequest, match="is not writable"):
        preflight(config)
    assert preflight(config, writes=False).entries == ()
