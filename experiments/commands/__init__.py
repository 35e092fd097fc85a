"""The command line, `implicit COMMAND`: what it can be asked for."""
