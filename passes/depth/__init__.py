"""Parents of different depth: blocks found along a program, left out, or put in without effect."""
