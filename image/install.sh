#!/bin/sh
# install.sh PREFIX [EXTRAS [STEP]]    dinoctl from this checkout into a fresh PREFIX, as the image has it.
#
# EXTRAS: train,operator. STEP: `packages` (what the extras need of requirements.lock), then `project` (dinoctl itself, a
# few MB, so that a change to it is quick to build and to pull); both if none is named. Nothing is compiled or written
# later: bytecode is made here, and so are the CPU kernels where torch and a C++ compiler are.
# PYTHON names the interpreter (default python3).
set -eu

prefix=${1:?usage: install.sh PREFIX [EXTRAS [packages|project]]}
extras=${2:-}
step=${3:-both}
source=$(cd "$(dirname "$0")/.." && pwd)
python="$prefix/bin/python"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022         # whoever the image's user is reads all of it, and writes nothing
unset PYTHONPATH  # nothing but what is installed here

# DeepSpeed's own operations are not used (docs/architecture.md, Engines), so none is built, here or at run time.
export DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# locked WANTED OPTION...    installs the part of the lock that WANTED needs
locked() {
  "$python" "$source/image/needed.py" "$source/requirements.lock" "$source/pyproject.toml" "$1" > "$work/wanted.txt"
  shift
  "$python" -m pip install --quiet --require-hashes --no-deps --no-compile --requirement "$work/wanted.txt" "$@"
}

packages() {
  if [ -e "$prefix" ]; then
    echo "install.sh: $prefix is there already; name a fresh directory" >&2
    exit 2
  fi
  "${PYTHON:-python3}" -m venv "$prefix"
  locked "$extras"
  # On all cores, which pip does not. Some packages carry templates that are no Python: left as they are.
  "$python" -m compileall -qq -j 0 "$prefix/lib" || :
}

project() {
  locked build-system --target "$work/build"
  PYTHONPATH="$work/build" "$python" -m pip install --quiet --no-deps --no-build-isolation "$source"
  "$python" -m pip check
  case ",$extras," in
  *,train,*)
    # For the processor of this machine; another one builds its own in two seconds, in its cache.
    mkdir -p "$prefix/share/dinoctl"
    DINOCTL_CACHE_DIR="$prefix/share/dinoctl" "$python" -c '
from dinoctl.model.native.build import why_not
print("CPU kernels:", why_not() or "built")'
    ;;
  esac
  "$prefix/bin/dinoctl" --version
}

case $step in
packages) packages ;;
project) project ;;
both)
  packages
  project
  ;;
*)
  echo "install.sh: no step '$step'; there are packages and project" >&2
  exit 2
  ;;
esac
