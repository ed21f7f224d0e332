"""What every part of Clipmill agrees on: configuration, tables, rows, errors and identities. No I/O, no Ray, no torch."""
