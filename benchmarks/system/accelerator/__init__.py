"""What an accelerator makes of draftgym, in one command."""

from benchmarks.system.accelerator.card import tables

__all__ = ["tables"]  # where benchmarks.report looks for them
