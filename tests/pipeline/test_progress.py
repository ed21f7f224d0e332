import io
import threading

import pytest

from pipeline.progress import Figures, Progress, describe, sketch


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Watched(io.StringIO):
    """Tells when so many lines have been written."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left, self.enough = lines, threading.Event()

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left <= 0:
            self.enough.set()
        return super().write(text)


def test_one_line_says_videos_clips_speed_failures_and_time_left() -> None:
    figures = Figures(total_videos=1000, videos=250, clips=3100, video_s=36000, failures=2, elapsed_s=600)
    assert describe(figures) == "250 of 1,000 videos, 3,100 clips, 60 hours of video per hour, 2 failed, 30 min 00 s left"


def test_on_a_terminal_the_line_fits_beside_the_bar() -> None:
    figures = Figures(total_videos=100_000, videos=25_000, clips=310_000, video_s=3.6e6, failures=200, elapsed_s=6000)
    assert sketch(figures) == "25,000/100,000 videos  310,000 clips  600.0 h of video/h  200 failed  5 h 00 min left"
    assert len(sketch(Figures(total_videos=40, videos=7, clips=31, video_s=93, elapsed_s=8))) + 14 < 80
    assert sketch(Figures()) == "0 videos  0 clips  0 failed"


def test_nothing_is_claimed_that_is_not_known_yet() -> None:
    assert describe(Figures()) == "0 videos, 0 clips, no failures"
    assert describe(Figures(total_videos=5)) == "0 of 5 videos, 0 clips, no failures"
    assert describe(Figures(total_videos=5, videos=5, elapsed_s=3)) == "5 of 5 videos, 0 clips, no failures"
    assert Figures(total_videos=1, videos=3, elapsed_s=1).left_s is None


def test_updates_add_up_and_time_runs_from_the_start() -> None:
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    clock.now_s += 50
    progress.start(total_videos=4)
    clock.now_s += 20
    progress.update(videos=1, clips=3, video_s=10)
    progress.update(videos=1, video_s=5.5, failures=1)
    progress.stop()
    assert progress.figures() == Figures(4, 2, 3, 15.5, 1, 20.0)


def test_off_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end() -> None:
    stream = Watched(lines=2)
    with Progress(stream, every_s=0.001) as progress:
        progress.start(total_videos=2)
        progress.update(videos=1)
        assert stream.enough.wait(30)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("1 of 2 videos")


def test_off_a_terminal_nothing_is_written_before_the_first_interval_but_notes() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start()
    progress.update(videos=3)
    progress.note("a node was lost")
    assert stream.getvalue() == "a node was lost\n"
    progress.stop()
    assert stream.getvalue().count("\n") == 2


@pytest.mark.parametrize("live", [False, True])
def test_stopping_twice_or_without_a_start_is_harmless(live: bool) -> None:
    stream = io.StringIO()
    progress = Progress(stream, live=live)
    progress.stop()
    progress.stop()
    progress.start()
    assert stream.getvalue() == ""
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_on_a_terminal_the_line_is_drawn_again_and_taken_away() -> None:
    stream = io.StringIO()
    progress = Progress(stream, live=True)
    progress.start(total_videos=3)
    progress.note("begun")  # draws at once
    progress.update(videos=2, clips=9)
    progress.note("[b]not markup[/b]")
    progress.start(total_videos=4)
    progress.stop()
    assert "0/3 videos" in stream.getvalue()
    assert "2/4 videos  9 clips  0 failed" in stream.getvalue()
    assert "[b]not markup[/b]" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()


def test_updates_from_many_threads_are_all_counted() -> None:
    progress = Progress(io.StringIO())
    threads = [threading.Thread(target=lambda: [progress.update(clips=1) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.figures().clips == 1600
