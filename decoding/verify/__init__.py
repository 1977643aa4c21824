"""Proposals, the rules by which a target accepts them, and the noise that couples both."""
