"""Runs a flow in this process: `python -m flows experiment '{"preset": "demo"}'`.

`python -m flows install` brings the Prefect server to what the project needs.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from prefect.exceptions import ParameterBindError, ParameterTypeError, PrefectHTTPStatusError

from blip.errors import BlipError, ConfigError, IntegrationError
from blip.integrations.runner import exit_code, summary
from flows import experiment as flows
from flows.install import install

FLOWS = ("experiment", *flows.PARTS)


def main() -> None:
    """Do what the arguments say; what is the user's to mend is one message."""
    try:
        with _reaching_server():
            code = _call(sys.argv[1:])
    except BlipError as error:
        sys.stderr.write(f"blip: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _call(arguments: list[str]) -> int:
    match arguments:
        case ["install"]:
            install()
            return 0
        case [name, parameters] if name in FLOWS:
            return _run(name, parameters)
    raise ConfigError(
        f"python -m flows takes install, or a flow ({', '.join(FLOWS)}) and its parameters as JSON"
    )


def _run(name: str, parameters: str) -> int:
    """Run the named flow; give the code of the first failed stage."""
    try:
        state = getattr(flows, name)(**_parse(parameters), return_state=True)
    except ParameterBindError as error:
        raise ConfigError(str(error)) from None
    outcomes = state.result(raise_on_failure=False)
    if isinstance(outcomes, list):
        sys.stdout.write(f"{summary(outcomes)}\n")
        return exit_code(outcomes, [])
    sys.stderr.write(f"blip: {state.message}\n")
    return 2 if isinstance(outcomes, BlipError | ParameterTypeError) else 1


def _parse(parameters: str) -> dict[str, Any]:
    try:
        given = json.loads(parameters)
    except json.JSONDecodeError as error:
        raise ConfigError(f"parameters {parameters!r} are not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"parameters {parameters!r} are not a JSON object")
    return given


@contextlib.contextmanager
def _reaching_server() -> Iterator[None]:
    """Say in one line that the Prefect server cannot be used, and the remedy."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 401:
            raise
        raise IntegrationError(
            "the Prefect server wants a password: set PREFECT_API_AUTH_STRING (user:password)"
        ) from None
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        raise IntegrationError(
            f"{error}: start it (prefect server start) or unset PREFECT_API_URL"
        ) from None


if __name__ == "__main__":
    main()
