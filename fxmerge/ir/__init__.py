"""The intermediate representation: programs, spaces and the merge and unmerge nodes."""
