"""A run under way: its folder, what is kept of it, and how it is resumed."""
