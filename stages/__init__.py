"""What is done to a video: plain callables on Arrow tables, usable and testable alone. Nothing in here imports Ray."""
