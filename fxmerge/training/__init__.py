"""Training: labels from the teachers, steps, and going on after a stop."""
