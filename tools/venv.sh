#!/bin/bash
# Makes .venv and installs Bulle into it: tools/venv.sh [extra]   (extra: dev)
# Called by the Makefile when what the package is built from has changed.
set -eu
# shellcheck source=tools/python.sh
. "$(dirname "$0")/python.sh"
# Without bytecode every command of an ordinary start would compile its modules again.
unset PYTHONDONTWRITEBYTECODE

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    if ! find_python; then
        echo "Bulle needs Python 3.11 or newer: none was found as /usr/bin/python3 or in PATH." >&2
        exit 1
    fi
    rm -rf .venv
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --without-pip .venv
    else
        echo "$python has neither ensurepip nor pip, so no virtual environment can be made; as root: apt-get install python3-venv" >&2
        exit 1
    fi
fi

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
    pip=(.venv/bin/python -m pip)
else
    find_python
    pip=("$python" -m pip --python .venv/bin/python)
fi
"${pip[@]}" --disable-pip-version-check --quiet install --editable ".${1:+[$1]}" || {
    echo "Bulle could not be installed into .venv (pip's words are above): is the Python package index reachable?" >&2
    exit 1
}
