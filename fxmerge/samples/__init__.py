"""Samples: from files and arrays to what a program takes, and more of them from few."""
