"""The planned engine without AVX-512: the same kernels, compiled in a fresh process for older processors.

Everything can be run so: `NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= pytest tests/mlcore` (or `generic`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mlcore.helpers import needs_compiler, run_python

CODE = """
from mlcore.kernels.native import this_machine
from mlcore.kernels.response import Response
from tests.mlcore import test_planned_kernels as planned

def run(test, *arguments):
    test.hypothesis.inner_test(*arguments)

how = {"kernel": 3, "stride": 2, "padding": 1, "groups": 2}
run(planned.test_a_planned_convolution_equals_its_slow_twin, ((3, 10, 11, 9), how, 36), True, 2)
run(planned.test_a_planned_linear_layer_equals_its_slow_twin, 19, 45, 70)
pooling = ((2, 18, 9, 8), (3, 2, 1), 2), Response(5, 2.0, 0.1, 0.75), False
run(planned.test_planned_max_pooling_with_normalisation_equals_its_slow_twins, *pooling)
machine = this_machine()
print(machine.lanes, machine.has_bf16)
"""


@needs_compiler
@pytest.mark.parametrize(("processor", "lanes"), [("haswell", 8), ("generic", 4)])
def test_the_planned_kernels_equal_their_slow_twins_without_avx512(processor: str, lanes: int, tmp_path: Path) -> None:
    older = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_OPT": "1"}
    assert run_python(CODE, **older, NUMBA_CACHE_DIR=str(tmp_path)).split() == [str(lanes), "False"]
