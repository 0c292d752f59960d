"""Runs a flow in this process: `python -m flows NAME '{"preset": "demo"}'`; what `blip run` does with a Prefect API."""

import json
import sys

from blip.errors import BlipError
from blip.integrations.runner import exit_code, summary
from flows import experiment as flows


def main() -> None:
    """Run the named flow with JSON parameters; exit with the code of the first failed stage."""
    name, parameters = sys.argv[1], json.loads(sys.argv[2])
    try:
        state = getattr(flows, name)(**parameters, return_state=True)
    except KeyboardInterrupt:
        sys.exit(130)
    outcomes = state.data
    if not isinstance(outcomes, list):
        sys.stderr.write(f"blip: {state.message}\n")
        sys.exit(2 if isinstance(outcomes, BlipError) else 1)
    sys.stdout.write(f"{summary(outcomes)}\n")
    sys.exit(exit_code(outcomes, []))


if __name__ == "__main__":
    main()
