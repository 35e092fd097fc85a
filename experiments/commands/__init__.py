"""The commands of the command line, `implicit COMMAND`."""
