"""Clipmill with `clips.effort: fast`: frames that no other is made from are not decoded. The others decode every frame."""

from __future__ import annotations

from benchmarks.peers.with_clipmill import main

if __name__ == "__main__":
    main("fast")
