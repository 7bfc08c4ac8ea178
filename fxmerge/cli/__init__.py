"""The command line: verbs, flags, exit codes, what is printed and what is drawn; the work is done elsewhere."""


def main() -> int:
    """Run the command line; the exit code."""
    from fxmerge.cli.verbs import main as run

    return run()
