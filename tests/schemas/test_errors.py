import pickle

import pytest

from schemas.errors import (
    DEFERRING,
    MAX_MESSAGE_CHARS,
    QUARANTINING,
    BadClip,
    BadRequest,
    BadVideo,
    ClipmillError,
    CodedError,
    ErrorCode,
    one_line,
)


@pytest.mark.parametrize("kind", [BadVideo, BadClip])
def test_coded_errors_survive_the_way_between_processes(kind: type[CodedError]) -> None:
    error = pickle.loads(pickle.dumps(kind(ErrorCode.DAMAGED, "packet 7")))
    assert type(error) is kind
    assert (error.code, error.message) == (ErrorCode.DAMAGED, "packet 7")
    assert str(error) == "damaged: packet 7"


def test_a_message_is_one_printable_line_of_bounded_length() -> None:
    assert one_line("a\n\tb\x00c\x1b[31m") == "a b c [31m"
    assert one_line("x" * 2000) == "x" * (MAX_MESSAGE_CHARS - 1) + "…"
    assert one_line("x" * MAX_MESSAGE_CHARS) == "x" * MAX_MESSAGE_CHARS
    assert BadVideo(ErrorCode.STORAGE, "first\nsecond").message == "first second"
    assert str(BadRequest("first\nsecond")) == "first second"


def test_only_a_video_or_a_clip_can_become_a_row() -> None:
    assert issubclass(BadRequest, ClipmillError)
    assert not issubclass(BadRequest, CodedError)


def test_no_code_both_defers_and_quarantines() -> None:
    assert not DEFERRING & QUARANTINING
    assert ErrorCode.VANISHED in DEFERRING
    assert ErrorCode.MISSING not in DEFERRING


def test_codes_are_lower_case_words_that_fit_a_column() -> None:
    assert all(code == code.lower() and code.replace("_", "").isalpha() for code in ErrorCode)
