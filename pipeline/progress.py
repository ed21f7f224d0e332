"""What a person sees while a run works: a live line on a terminal, a plain line every ten seconds elsewhere.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from pipeline.summary import duration, speed

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Figures:
    """What is known of a run at one moment. `total_videos` is None until the input has been listed."""

    total_videos: int | None = None
    videos: int = 0
    clips: int = 0
    video_s: float = 0.0
    failures: int = 0
    elapsed_s: float = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds to go at the mean pace so far; None where that says nothing yet."""
        if not self.total_videos or not self.videos or self.videos > self.total_videos:
            return None
        return self.elapsed_s * (self.total_videos - self.videos) / self.videos


def describe(figures: Figures) -> str:
    """One line: videos, clips, hours of video per hour, failures, time left."""
    of = "" if figures.total_videos is None else f" of {figures.total_videos:,}"
    parts = [f"{figures.videos:,}{of} videos", f"{figures.clips:,} clips"]
    if figures.video_s > 0:
        parts.append(speed(figures.video_s, figures.elapsed_s))
    parts.append(f"{figures.failures:,} failed" if figures.failures else "no failures")
    if figures.left_s is not None and figures.videos != figures.total_videos:
        parts.append(f"{duration(figures.left_s)} left")
    return ", ".join(parts)


def sketch(figures: Figures) -> str:
    """The same for a terminal, where it stands beside a bar and has to fit a line."""
    of = "" if figures.total_videos is None else f"/{figures.total_videos:,}"
    parts = [f"{figures.videos:,}{of} videos", f"{figures.clips:,} clips"]
    if figures.video_s > 0 and figures.elapsed_s > 0:
        parts.append(f"{figures.video_s / figures.elapsed_s:,.1f} h of video/h")
    parts.append(f"{figures.failures:,} failed")
    if figures.left_s is not None and figures.videos != figures.total_videos:
        parts.append(f"{duration(figures.left_s)} left")
    return "  ".join(parts)


class Progress:
    """Shows a run's figures. `start`, then `update` with what has been added, `note` for a line that stays, `stop`.

    Safe to call from several threads. Also a context manager that stops on the way out.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        *,
        live: bool | None = None,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty() if live is None else live
        self._every_s, self._clock = every_s, clock
        self._figures = Figures()
        self._began_s = clock()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ticker: threading.Thread | None = None
        self._rich: RichProgress | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, total_videos: int | None = None) -> None:
        """Begins to show; called again, it only corrects the number of videos due."""
        with self._lock:
            self._figures = replace(self._figures, total_videos=total_videos)
            began = self._ticker is not None or self._rich is not None
        if began or self._stopped.is_set():
            return
        self._began_s = self._clock()
        if self._live:
            self._start_live()
        else:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()

    def update(self, *, videos: int = 0, clips: int = 0, video_s: float = 0.0, failures: int = 0) -> None:
        """Adds what has been done since the last call; `videos` counts failed ones too."""
        with self._lock:
            now = self._figures
            self._figures = replace(
                now,
                videos=now.videos + videos,
                clips=now.clips + clips,
                video_s=now.video_s + video_s,
                failures=now.failures + failures,
            )
        self._refresh()

    def note(self, text: str) -> None:
        """A line of its own that stays."""
        if self._rich is not None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def stop(self) -> None:
        """Takes the live line away, or writes the last figures. A second call does nothing."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._rich is not None:
            self._refresh()
            self._rich.stop()
            self._rich = None
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
            self._tell(self.figures())

    def figures(self) -> Figures:
        """The figures at this moment."""
        with self._lock:
            return replace(self._figures, elapsed_s=max(0.0, self._clock() - self._began_s))

    def _tick(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._tell(self.figures())

    def _tell(self, figures: Figures) -> None:
        self._write(describe(figures))

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
        from rich.text import Text

        figures = self.figures

        class Line(ProgressColumn):
            """Worked out at each redraw, so that speed and time left move while a long video decodes."""

            def render(self, task: Task) -> Text:
                del task
                return Text(sketch(figures()), no_wrap=True, overflow="ellipsis")

        console = Console(file=self._stream, force_terminal=True)
        self._rich = Progress(SpinnerColumn(), BarColumn(bar_width=10), Line(), console=console, transient=True)
        self._rich.add_task("run", total=None)
        self._rich.start()
        self._refresh()

    def _refresh(self) -> None:
        if self._rich is not None:
            now = self.figures()
            self._rich.update(self._rich.task_ids[0], total=now.total_videos, completed=now.videos)
