"""Properties over damaged files and strange inputs; `make fuzz` draws thousands more."""
