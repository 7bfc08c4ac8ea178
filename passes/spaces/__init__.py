"""The spaces of a program: found, described, checked."""
