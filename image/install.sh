#!/bin/sh
# install.sh PREFIX [EXTRAS]    dinoctl from this checkout into a fresh PREFIX, as the image has it. EXTRAS: train,operator
#
# Versions and hashes are those of requirements.lock; what the extras don't need of it is left out. Nothing is compiled
# or written later: bytecode is made here, and so are the CPU kernels where torch and a C++ compiler are.
# PYTHON names the interpreter (default python3).
set -eu

prefix=${1:?usage: install.sh PREFIX [EXTRAS]}
extras=${2:-}
source=$(cd "$(dirname "$0")/.." && pwd)
if [ -e "$prefix" ]; then
  echo "install.sh: $prefix is there already; name a fresh directory" >&2
  exit 2
fi

# DeepSpeed's own operations are not used (docs/architecture.md, Engines), so none is built, here or at run time.
export DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
"${PYTHON:-python3}" -m venv "$prefix"
python="$prefix/bin/python"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" "$source/image/needed.py" "$source/requirements.lock" "$source/pyproject.toml" "$extras" > "$work/wanted.txt"
"$python" -m pip install --quiet --require-hashes --no-deps --requirement "$work/wanted.txt"
"$python" -m pip install --quiet --no-deps "$source"
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
chmod -R a+rX,go-w "$prefix"
"$prefix/bin/dinoctl" --version
