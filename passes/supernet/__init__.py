"""The SuperNet: built, hoisted, folded."""
