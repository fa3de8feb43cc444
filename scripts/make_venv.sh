#!/bin/sh
# Make a virtual environment, or keep a complete one: scripts/make_venv.sh PYTHON FOLDER
#
# The caller writes $MADE_FOR into FOLDER/.installed when its own installation is done. This script takes that
# stamp away again, so an interruption at any point leaves a folder that the next call makes anew.
set -eu

python=$1
venv=$2
stamp=$venv/.installed
pip='pip>=25.1' # the first with --group

say() { printf 'lamella: %s\n' "$*" >&2; }

# The pip that comes with an interpreter may be older than dependency groups.
renew_pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$pip"; }

if ! version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); then
    say "\"$python\" does not run. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "Python 3.11 or newer is needed, and \"$python\" is $version. Name another: make PYTHON=python3.12 ..."
    exit 1
fi

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "${MADE_FOR-}" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    rm -f "$stamp"
    renew_pip
    exit 0
fi

say "making $venv with Python $version"
rm -rf "$venv"
if problem=$("$python" -m venv "$venv" 2>&1); then
    renew_pip
    exit 0
fi

# Some distributions split ensurepip off into a package of its own: then the interpreter's own pip can do it.
rm -rf "$venv"
if "$python" -m venv --without-pip "$venv" >/dev/null 2>&1 &&
    "$python" -m pip --python "$venv/bin/python" install --quiet "$pip"; then
    exit 0
fi

rm -rf "$venv"
printf '%s\n' "$problem" >&2
say "\"$python\" cannot make a virtual environment. It needs the modules venv and ensurepip" \
    "(on Debian and Ubuntu: apt install python3-venv), or a pip of version 22.3 or newer."
exit 1
