from __future__ import annotations

from collections import Counter

from benchmarks.requests import counted

RUN = "tables/archive/_runs/20261126T160000-abcdef"
LOG = f"""
WARNING: This is a development server.
127.0.0.1 - - [26/Nov/2026 16:00:00] "GET /footage?list-type=2&prefix=&encoding-type=url HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "\x1b[1mGET /footage/0001.mp4 HTTP/1.1\x1b[0m" 206 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "HEAD /footage/0001.mp4 HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "HEAD /{RUN}/parts/a.parquet HTTP/1.1" 404 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "PUT /{RUN}/parts/a.parquet HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "PUT /{RUN}/parts/a.parquet HTTP/1.1" 412 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "GET /tables?list-type=2&prefix=archive%2F_runs%2Fr%2Fparts%2F HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "DELETE /{RUN}/parts/a.parquet HTTP/1.1" 204 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "PUT /{RUN}/epochs/00000001.0a.parts.parquet HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "PUT /tables/archive/_log/00000001.json HTTP/1.1" 200 -
127.0.0.1 - - [26/Nov/2026 16:00:00] "POST /tables?delete HTTP/1.1" 200 -
""".strip().splitlines()


def test_requests_are_counted_by_what_they_are_for() -> None:
    assert counted(LOG) == Counter(
        source_list=1, source_get=2, part_get=1, part_put=2, part_list=1, part_delete=1, parts=1,
        epoch_put=2, epoch_delete=1, epochs=1,
    )  # fmt: skip
