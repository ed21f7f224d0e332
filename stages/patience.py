"""How long a store is waited for: one patience for an outage, not one for every call that meets it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from stages.telemetry import Figure, measured

SILENT_S = 60.0  # of calls that fail, without one that succeeds in between
THROTTLED_S = 180.0  # of being told to slow down: such a store is alive
MOST_WAIT_S = 20.0  # between two tries
_THROTTLES = frozenset({"SlowDown", "503", "429", "Throttling", "ThrottlingException", "TooManyRequests"})
_TRANSIENT = frozenset({"InternalError", "RequestTimeout", "IncompleteBody", "OperationAborted"})
_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
# Without these a good answer is none of S3: a login page, or a gateway that has broken.
_MUST_HAVE = {
    "PutObject": "ETag", "GetObject": "ETag", "HeadObject": "ETag", "UploadPart": "ETag", "ListObjectsV2": "Name",
    "CreateMultipartUpload": "UploadId", "CompleteMultipartUpload": "ETag",
}  # fmt: skip
NONSENSE = "NoAnswerOfS3"


class BrokenAnswer(OSError):
    """A store's answer that broke off, or makes no sense."""


class Patience:
    """Of one process with one store.

    A call is tried again until patience is over; from then on every call is tried once, until one succeeds. An answer that
    refuses (a missing key, credentials that are no longer good) is an answer: it is never asked for again.
    """

    def __init__(
        self,
        most_tries: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.is_over = False
        self._most_tries, self._clock, self._jitter = most_tries, clock, jitter
        self._failing_since: float | None = None

    def on_answer(
        self,
        *,
        attempts: int,
        request_dict: dict[str, Any],
        operation: Any,
        response: tuple[Any, dict[str, Any]] | None = None,
        caught_exception: BaseException | None = None,
        **_: Any,
    ) -> float | None:
        """Handler of botocore's `needs-retry`: seconds to wait before the next try, or None where there is none.

        Raises BrokenAnswer where botocore would take the last answer for a good one.
        """
        trouble = type(caught_exception).__name__ if response is None else _trouble(*response, operation.name)
        if trouble is None:
            self.is_over, self._failing_since = False, None
            return None
        wait_s = self.wait_s(attempts, request_dict.setdefault("context", {}), throttled=trouble in _THROTTLES)
        if wait_s is None and trouble == NONSENSE:
            raise BrokenAnswer("what answered is not S3 (a login page, a broken gateway)")
        if wait_s is not None:
            measured(Figure.STORAGE_RETRY, 1, reason=_kind(trouble, is_answer=response is not None))
        return wait_s

    def wait_s(self, tries: int, call: dict[str, Any], *, throttled: bool = False) -> float | None:
        """The same after `tries` failures of a call; `call` keeps for us when it failed first."""
        now = self._clock()
        failing_since = self._failing_since = now if self._failing_since is None else self._failing_since
        # Of the call too: one key may fail for ever while others succeed.
        waited_s = now - min(failing_since, call.setdefault("clipmill_failing_since", now))
        if waited_s >= (THROTTLED_S if throttled else SILENT_S) or tries >= (self._most_tries or tries + 1):
            self.is_over = True
        return None if self.is_over else self._jitter() * min(2.0 ** (tries - 1), MOST_WAIT_S)


def _kind(trouble: str, *, is_answer: bool) -> str:
    """One of four words: codes are the server's to choose, and a label must not have values without end."""
    if not is_answer:
        return "no_answer"
    return "throttled" if trouble in _THROTTLES else "nonsense" if trouble == NONSENSE else "server_error"


def _trouble(http: Any, parsed: dict[str, Any], operation: str) -> str | None:
    """What may be better at the next try, by its code; None for an answer that stands."""
    code = str(parsed.get("Error", {}).get("Code", ""))
    if http.status_code in _STATUSES or code in _TRANSIENT | _THROTTLES:
        return code or str(http.status_code)
    is_good = http.status_code < 300 and not code
    return NONSENSE if is_good and operation in _MUST_HAVE and not parsed.get(_MUST_HAVE[operation]) else None
