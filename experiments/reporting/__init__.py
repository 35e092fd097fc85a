"""The results of a comparison: its numbers, table, figures and page."""
