"""Every program becomes machine code of GPUs that are not here, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton has no wheel for this machine")
ROOT = Path(__file__).parents[3]
SHARED_BYTES_MAX = 99 * 1024
"""Of one program on the GPUs of capability 8.0 or more that have least (8.6 and 8.9)."""
CODE = """
import json, sys
sys.path.insert(0, "benchmarks")
from kernels import all_programs, usage
limit = int(sys.argv[1])
found = [
    (f"{name}, {program.__name__}", *usage(program, chosen, 90, warps))
    for name, (program, chosen, warps) in list(all_programs())[:limit]
]
print(json.dumps(found))
"""


@pytest.mark.parametrize("limit", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_programs_compile_and_fit(limit):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(limit)], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) >= min(limit, 20)
    for name, registers, spilled_bytes, shared_bytes in found:
        assert 0 < registers <= 255, name
        assert spilled_bytes <= 128, name  # a few values, in memory that the first cache holds
        assert shared_bytes <= SHARED_BYTES_MAX, name
