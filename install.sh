#!/usr/bin/env bash
# Create .venv (if absent) and install one of the locked sets and this package into it.
#   usage: [PYTHON=python3.12] ./install.sh requirements.lock
# uv does the work where it can, pip where it cannot (uv reads none of pip's configuration).
set -euo pipefail
cd "$(dirname "$0")"
lock=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "Python 3.11 or newer is needed; $python is $("$python" -V). Set PYTHON=..." >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check)
install=("${pip[@]}" install --timeout 15 --retries 8 --quiet)

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  "${install[@]}" uv && uv=.venv/bin/uv || true
fi
echo "installing $lock ($(wc -l <"$lock") packages) into .venv"
export UV_FIND_LINKS=${UV_FIND_LINKS:-$("${pip[@]}" config get global.find-links 2>/dev/null || true)}
if [ -z "$uv" ] || ! "$uv" pip install --python .venv/bin/python --compile-bytecode -r "$lock"; then
  "${install[@]}" --progress-bar on -r "$lock"
fi
"${install[@]}" --no-deps --no-build-isolation --editable .
