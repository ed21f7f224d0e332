from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from av.filter import Graph

from schemas.errors import BadVideo, ErrorCode
from stages.planes import Planes, luma_of, planes_of

BLOCKS = (9, 16)
IN_PLACE = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuvj444p", "yuv411p", "yuva420p", "yuv420p10le", "yuv422p12le",
    "yuv444p16le", "nv12", "nv21", "nv16", "p010le", "p016le",
]  # fmt: skip
SCALED = ["rgb24", "bgr24", "rgb0", "gbrp", "gbrp10le", "rgb48le", "yuyv422", "uyvy422", "yuv420p10be", "yuv444p12be"]
GRAY = ["gray", "gray10le", "gray16le", "gray10be", "ya8"]


def colours(seed: int = 0) -> np.ndarray:
    """A colour for each of 9 x 16 blocks, neither black nor white."""
    return np.random.default_rng(seed).integers(40, 216, (*BLOCKS, 3), dtype=np.uint8)


def frame_of(blocks: np.ndarray, pixels: int = 40, pix_fmt: str = "rgb24") -> av.VideoFrame:
    image = np.repeat(np.repeat(blocks, pixels, axis=0), pixels, axis=1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
    return frame.reformat(format=pix_fmt, dst_colorspace="ITU601") if pix_fmt != "rgb24" else frame


def planes_of_one(frame: av.VideoFrame) -> Planes:
    """Small planes of a frame; its luma alone is the same."""
    found = planes_of([frame])
    luma, black, white = luma_of([frame])
    assert np.array_equal(luma, found.luma)
    assert (black, white) == (found.black, found.white)
    return Planes(found.luma[0], found.u[0], found.v[0], found.black, found.white)


def at_block_centres(values: np.ndarray) -> np.ndarray:
    """The samples of `values` in the middle of each block."""
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(BLOCKS, values.shape, strict=True))
    return values[np.ix_(rows, columns)].astype(float)


def expected(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT.601 of the colours: luma from 0 (black) to 1, and both colour differences from -0.5 to 0.5."""
    red, green, blue = np.moveaxis(blocks / 255.0, -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma, (blue - luma) / 1.772, (red - luma) / 1.402


def brightness(small: Planes) -> np.ndarray:
    return (at_block_centres(small.luma) - small.black) / (small.white - small.black)


@pytest.mark.parametrize("pix_fmt", IN_PLACE + SCALED)
def test_every_pixel_format_shows_the_same_colours(pix_fmt: str) -> None:
    blocks = colours()
    small = planes_of_one(frame_of(blocks, pix_fmt=pix_fmt))
    luma, u, v = expected(blocks)
    swing = 255.0 if small.white == 255 else 224.0
    assert np.abs(brightness(small) - luma).max() < 0.02
    assert np.abs((at_block_centres(small.u) - 128) / swing - u).max() < 0.03
    assert np.abs((at_block_centres(small.v) - 128) / swing - v).max() < 0.03


@pytest.mark.parametrize("pix_fmt", GRAY)
def test_a_gray_frame_has_neutral_colour_planes(pix_fmt: str) -> None:
    blocks = colours()
    small = planes_of_one(frame_of(blocks, pix_fmt=pix_fmt))
    assert np.abs(brightness(small) - expected(blocks)[0]).max() < 0.02
    assert np.abs(small.u.astype(int) - 128).max() <= 1
    assert np.abs(small.v.astype(int) - 128).max() <= 1


@pytest.mark.parametrize(
    ("pix_fmt", "black", "white"), [("yuv420p", 16, 235), ("yuvj420p", 0, 255), ("yuv420p10le", 16, 235), ("gray", 0, 255)]
)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_are_named_by_their_codes(pix_fmt: str, black: int, white: int, level: int) -> None:
    small = planes_of_one(frame_of(np.full((*BLOCKS, 3), level, np.uint8), pix_fmt=pix_fmt))
    assert (small.black, small.white) == (black, white)
    assert np.abs(small.luma.astype(int) - (white if level else black)).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1920, 1080, (32, 113)),
        (1080, 1920, (57, 64)),
        (640, 360, (30, 107)),
        (160, 90, (45, 160)),
        (50, 40, (20, 50)),
        (641, 361, (30, 107)),
        (1, 1, (1, 1)),
        (3, 7, (4, 3)),
        (20_000, 3, (1, 6667)),
    ],
)
def test_the_grid_has_about_32_rows_whatever_the_size(width: int, height: int, grid: tuple[int, int]) -> None:
    small = planes_of_one(av.VideoFrame(width, height, "yuv444p"))
    assert small.luma.shape == grid
    assert small.u.shape == small.v.shape
    assert small.u.size <= max(small.luma.size, width * height)


def test_samples_are_the_plane_s_own_values() -> None:
    frame = av.VideoFrame(320, 180, "yuv420p")
    ramp = np.arange(180 * 320).reshape(180, 320) % 251
    frame.planes[0].update(ramp.astype(np.uint8).tobytes())
    assert np.array_equal(planes_of_one(frame).luma, ramp[1::6, 1::3])


def test_planes_do_not_hold_the_frame_s_memory() -> None:
    frame = frame_of(colours(), pix_fmt="yuv420p")
    small = planes_of_one(frame)
    before = small.luma.copy()
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    for plane in (small.luma, small.u, small.v):
        assert plane.dtype == np.uint8
        assert plane.flags.c_contiguous
    assert np.array_equal(small.luma, before)


def test_a_frame_stored_bottom_up_stands_upright() -> None:
    graph = Graph()
    source = graph.add_buffer(width=640, height=360, format="yuv420p", time_base=Fraction(1, 25))
    flip, sink = graph.add("vflip"), graph.add("buffersink")
    source.link_to(flip)
    flip.link_to(sink)
    graph.configure()
    frame = frame_of(colours(), pix_fmt="yuv420p")
    frame.pts = 0
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    assert np.abs(brightness(planes_of_one(flipped)) - brightness(planes_of_one(frame))[::-1]).max() < 0.02


def test_a_format_that_nothing_reads_is_a_bad_video() -> None:
    with pytest.raises(BadVideo) as raised:
        planes_of_one(av.VideoFrame(64, 36, "rgb4"))
    assert raised.value.code == ErrorCode.UNSUPPORTED_CODEC
