"""Models and samples from files, read without executing anything they hold."""
