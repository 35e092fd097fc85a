"""What a comparison has come to: its numbers, its table, its figures, its page."""
