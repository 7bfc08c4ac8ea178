"""Moves of axes carried behind the calls that do not mind them."""
