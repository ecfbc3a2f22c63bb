"""`python -m cascade`, for `torchrun -m cascade`, and the console's `cascade`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it quietly from its first import on."""
    try:
        from cascade.cli.app import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
