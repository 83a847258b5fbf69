# Sourced: find_python sets $python to an interpreter of at least 3.11.
# The system's own comes first: what stands before it in PATH may be a shim (pyenv's costs 75 ms at every start).
find_python() {
    for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return 0
    done
    python=
    return 1
}
