"""The tiny checkpoints that ship with Clipmill, the renderer of their little world, and their training."""
