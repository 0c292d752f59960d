"""Runs a flow in this process: `python -m flows experiment '{"preset": "demo"}'`.

`python -m flows install` brings the Prefect server to what the project needs.
"""

import json
import sys
from typing import Any

from prefect.exceptions import ParameterTypeError

from blip.errors import BlipError
from blip.integrations.runner import exit_code, summary
from flows import experiment as flows
from flows.install import install


def main() -> None:
    """Do what the first argument says."""
    if sys.argv[1:] == ["install"]:
        _install()
    else:
        _run(sys.argv[1], json.loads(sys.argv[2]))


def _install() -> None:
    try:
        install()
    except BlipError as error:
        sys.stderr.write(f"blip: {error}\n")
        sys.exit(2)


def _run(name: str, parameters: dict[str, Any]) -> None:
    """Run the named flow; exit with the code of the first failed stage."""
    try:
        state = getattr(flows, name)(**parameters, return_state=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        sys.stderr.write(
            f"blip: {error}: start it (prefect server start) or unset PREFECT_API_URL\n"
        )
        sys.exit(2)
    outcomes = state.result(raise_on_failure=False)
    if isinstance(outcomes, list):
        sys.stdout.write(f"{summary(outcomes)}\n")
        sys.exit(exit_code(outcomes, []))
    sys.stderr.write(f"blip: {state.message}\n")
    sys.exit(2 if isinstance(outcomes, BlipError | ParameterTypeError) else 1)


if __name__ == "__main__":
    main()
