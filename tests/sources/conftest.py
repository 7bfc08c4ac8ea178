"""Small captured programs and a trap for files that run code."""

from tests.small_nets import gpt, masked, trap, vit

__all__ = ["gpt", "masked", "trap", "vit"]
