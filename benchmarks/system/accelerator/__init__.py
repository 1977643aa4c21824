"""What an accelerator makes of draftgym, in one command."""
