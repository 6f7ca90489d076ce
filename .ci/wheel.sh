#!/usr/bin/env bash
# Builds the wheel and uses it as a stranger would: outside the checkout, first bare, then with extras.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
make --no-print-directory setup
.venv/bin/python -m build --wheel --outdir "$work" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }

python="${PYTHON:-python3}"
"$python" -m venv "$work/env"
pip() { "$work/env/bin/python" -m pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$@"; }
cd "$work"

echo "wheel: core dependencies only"
pip "$work"/protoad-*.whl
env/bin/python - <<'PY'
import protoad, protoad_detectors, protoad_kernels, pirn
from protoad.nn import SinkhornAssign
from protoad.data import read_rgb
import torch
assert SinkhornAssign()(torch.randn(1, 9, 4), torch.randn(2, 4)).plan.shape == (1, 9, 2)
open("one.png", "wb").write(b"x")
try:
    read_rgb("one.png")
except protoad.MissingExtraError as error:
    print("  a missing extra says:", error)
else:
    raise SystemExit("reading a PNG without the data extra should have said so")
PY

echo "wheel: with extras"
pip "$(ls "$work"/protoad-*.whl)[data,viz]"
env/bin/pirn demo --quick --out "$work/demo"
env/bin/python -c "import json; r = json.load(open('$work/demo/metrics.json')); assert r['pirn']['image_auroc'] > 0.6, r['pirn']"
echo "wheel: ok"
