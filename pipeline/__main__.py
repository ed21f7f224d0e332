"""`python -m pipeline` is `clipmill`, from a folder that holds no `pipeline` of its own."""

from pipeline.cli import main

main()
