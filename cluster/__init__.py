"""Where a run happens: attaching to Ray or starting it, and sizing actors to what is there."""
