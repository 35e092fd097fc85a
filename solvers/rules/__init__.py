"""The rules that propose the next iterate: one file per solver."""
