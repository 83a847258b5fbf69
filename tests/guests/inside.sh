#!/bin/bash
# Runs in a guest, as a service of its systemd: the tests of an ordinary user in a session of hers, then those of root. tools/test_guests.py calls it.
# The last line says the exit codes. usage: inside.sh REPOSITORY USER TESTS_OF_ROOT -- TESTS_OF_THE_USER
set -u
cd "$1" && user=$2 && shift 2
root=()
while [ "$1" != -- ]; do root+=("$1") && shift; done
shift

export CI=true BULLE_TEST_DIRECTORY=/disk/tests PYTHONDONTWRITEBYTECODE=
options=(-m "not machines" -p no:cacheprovider -rfE --tb=short --durations=10 --durations-min=5)

echo "== an ordinary user, $(uname -r)"
start=$SECONDS
id=$(id -u "$user")
environment=(-E CI -E BULLE_TEST_DIRECTORY -E PYTHONDONTWRITEBYTECODE -E BULLE_GUEST_KERNEL -E BULLE_REQUIRE_TIERS -E BULLE_TESTS_UNTIL)
setpriv --reuid="$user" --regid="$user" --init-groups env HOME="/home/$user" USER="$user" XDG_RUNTIME_DIR="/run/user/$id" BULLE_REQUIRE_TIERS=user_namespaces,programs \
    systemd-run --user --quiet --pipe --wait --collect --service-type=exec --working-directory="$PWD" "${environment[@]}" \
    "$PWD/.venv/bin/python" -m pytest "${options[@]}" --basetemp=/disk/tests/pytest "$@"
of_user=$?
echo "== an ordinary user: $((SECONDS - start)) s"
echo "== root, $(uname -r)"
start=$SECONDS
# Ways of showing layers that its kernel does not have are no tier of this guest; tests/guests says which it must have.
BULLE_REQUIRE_TIERS=root,user_namespaces,programs .venv/bin/python -m pytest "${options[@]}" --basetemp=/disk/pytest "${root[@]}"
of_root=$?
echo "== root: $((SECONDS - start)) s"

echo "== ended with $of_root and $of_user"
