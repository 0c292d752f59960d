"""Entry point of the `blip` command: runs it and turns errors into one message and an exit code."""

import sys

from blip.cli import app
from blip.errors import BlipError


def main() -> None:
    """Run the command line; exit 2 for the user's errors, 75 for a lost process, 130 for Ctrl-C."""
    try:
        app()
    except BlipError as error:
        sys.stderr.write(f"blip: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("blip: interrupted; the next run goes on from here\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
