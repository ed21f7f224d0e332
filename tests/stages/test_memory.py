"""What a process does with memory that it has freed: each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELD_BYTES = 64 << 20
# Pieces too small to be mapped one by one, of which every sixteenth stays: what is free lies between what is in use.
SCATTERED = f"""
import ctypes
from stages.memory import keep_freed_memory, return_freed_memory, trim_memory

def resident_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
WAY()
before, size = resident_bytes(), 64 << 10
places = [libc.malloc(size) for _ in range({HELD_BYTES} // size)]
for place in places:
    ctypes.memset(place, 1, size)
assert resident_bytes() - before >= {HELD_BYTES}
for number, place in enumerate(places):
    if number % 16:
        libc.free(place)
LATER()
print(resident_bytes() - before)
"""


def left(way: str, later: str) -> int:
    """Bytes that a process still holds once it has freed nearly all."""
    code = SCATTERED.replace("WAY", way).replace("LATER", later)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_driver_gives_freed_memory_back_and_a_decoder_keeps_it_for_the_next_video() -> None:
    assert left("return_freed_memory", "trim_memory") < HELD_BYTES / 4
    assert left("keep_freed_memory", "int") > HELD_BYTES / 2
