"""What the alignment methods share: the parents' spaces side by side, what speaks for which match, and the maps."""
