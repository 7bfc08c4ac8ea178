"""Models from files of every kind, read without executing anything they hold."""
