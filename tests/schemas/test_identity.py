import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import identity
from schemas.identity import FINGERPRINT, SLUG, VIDEO_ID

VIDEO = identity.video_id("s3://bucket/a.mp4", 10, "etag")


def test_ids_made_today_stay_the_same_for_ever() -> None:
    assert identity.video_id("/a.mp4", 1234, "1700000000000000000") == "ca113d4e9116bb868ea08a96ee3d1fc0"
    assert identity.fingerprint({"a": 1, "b": [1.5, "x", None]}) == "w4jurtcu"
    assert identity.clip_id("0" * 32, "abcdefgh", 61.25) == "0" * 32 + "-abcdefgh-000061250"
    assert identity.unit_id("0" * 32, 3) == "0" * 32 + "-0003"


def test_a_video_is_its_name_size_and_version() -> None:
    others = [
        identity.video_id("s3://bucket/b.mp4", 10, "etag"),
        identity.video_id("s3://bucket/a.mp4", 11, "etag"),
        identity.video_id("s3://bucket/a.mp4", 10, "etag2"),
        identity.video_id("s3://bucket/a.mp4", 10, None),
        identity.video_id("s3://bucket/a.mp4", None, "etag"),
    ]
    assert identity.video_id("s3://bucket/a.mp4", 10, "etag") == VIDEO
    assert len({VIDEO, *others}) == 6
    assert all(VIDEO_ID.fullmatch(one) for one in [VIDEO, *others])


def test_parts_of_an_identity_cannot_run_into_each_other() -> None:
    assert identity.video_id("a1", 2, "x") != identity.video_id("a", 12, "x")
    assert identity.video_id("a", 1, "2x") != identity.video_id("a", 12, "x")


def test_a_name_that_is_not_utf8_has_an_id() -> None:
    assert VIDEO_ID.fullmatch(identity.video_id("/videos/\udcff.mp4", 1, None))


@given(st.floats(0, 90_000), st.floats(0, 90_000))
def test_clip_ids_sort_as_clips_do_and_differ_from_a_millisecond_on(first_s: float, second_s: float) -> None:
    first, second = (identity.clip_id(VIDEO, "abcdefgh", start_s) for start_s in sorted((first_s, second_s)))
    assert first <= second
    if abs(first_s - second_s) > 0.00101:
        assert first != second


def test_a_clip_that_begins_a_hair_before_zero_is_at_zero() -> None:
    assert identity.clip_id(VIDEO, "abcdefgh", -0.0004).endswith("-000000000")
    assert identity.clip_id(VIDEO, "abcdefgh", -3.0).endswith("-000000000")


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans(), st.none()), max_size=5))
def test_fingerprints_begin_with_a_letter_and_do_not_depend_on_order(payload: dict[str, object]) -> None:
    found = identity.fingerprint(payload)
    assert FINGERPRINT.fullmatch(found)
    assert identity.fingerprint(dict(reversed(payload.items()))) == found


def test_fingerprints_tell_values_and_types_apart() -> None:
    payloads = [{"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.5}, {"b": 1}, {"a": None}, {"a": [1]}, {}]
    assert len({identity.fingerprint(payload) for payload in payloads}) == len(payloads)


def test_a_value_that_is_no_number_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON"):
        identity.fingerprint({"a": float("nan")})


@pytest.mark.parametrize(
    ("model", "base", "revision"),
    [
        ("openai/clip", "openai/clip", None),
        ("openai/clip@main", "openai/clip", "main"),
        ("s3://user@host/folder", "s3://user@host/folder", None),
        ("s3://bucket/folder@v2", "s3://bucket/folder", "v2"),
        ("@odd", "@odd", None),
    ],
)
def test_a_revision_is_what_follows_the_last_at_sign(model: str, base: str, revision: str | None) -> None:
    assert identity.split_revision(model) == (base, revision)


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("openai/clip-vit-base-patch32", "openai--clip-vit-base-patch32"),
        ("OpenAI/CLIP@abc123", "openai--clip"),
        ("embedded:motion", "embedded-motion"),
        ("/models/My Model", "my-model"),
        ("./model", "model"),
        ("s3://bucket/models/clip/", "clip"),
        ("/models/7b", "m-7b"),
        ("/models/日本", "m-model"),
    ],
)
def test_a_models_name_in_paths(model: str, slug: str) -> None:
    assert identity.model_slug(model) == slug


@given(st.text(min_size=1))
def test_every_slug_is_fit_for_a_path(model: str) -> None:
    slug = identity.model_slug(model)
    assert SLUG.fullmatch(slug)
    assert not re.search(r"[/=\s]", slug)
