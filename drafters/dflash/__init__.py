"""DFlash (arXiv 2602.06036): a block-diffusion drafter that fills a block in one pass."""
