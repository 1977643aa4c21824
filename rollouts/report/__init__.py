"""What was measured, for people: rows, intervals, tables, plots, a page."""
