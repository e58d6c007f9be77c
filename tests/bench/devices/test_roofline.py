"""The roofline's arithmetic against figures worked out by hand, and its drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import pytest

from llmir.bench.cases import Case
from llmir.bench.costs import Span, StepCosts
from llmir.bench.devices.limits import DeviceLimits, work_of
from llmir.bench.devices.roofline import Point, Roof, attainable, draw, ridge
from llmir.bench.devices.run import device_row
from llmir.bench.measure import Measured
from llmir.bench.report import make_row
from llmir.compiler import limit_modules
from llmir.errors import DeviceError


@dataclass(frozen=True)
class Limits:
    """100 GB/s and 400 GFLOP/s: the ridge is at 4 FLOP per byte."""

    read_bytes_per_s: float = 100e9
    arithmetic: tuple[float, str] = (400e9, "f32")


COSTS = StepCosts(
    weight_bytes=1_000_000,
    stored_weight_bytes=1_000_000,
    kv_token_bytes=100,
    page_size=16,
    matrix_elements=900_000,
    head_elements=100_000,
    attention_flops=0,
    group_windows=(None,),
    group_of_layer=(0,),
)


@pytest.mark.parametrize(
    ("intensity", "expected"), [(0.5, 50e9), (2, 200e9), (4, 400e9), (80, 400e9)]
)
def test_the_lower_limit_holds(intensity: float, expected: float) -> None:
    assert attainable(intensity, Limits()) == expected
    assert ridge(Limits()) == 4.0


def measured(step_s: list[list[float]], **more: object) -> Measured:
    values = {
        "load_s": 0.0,
        "first_step_s": 0.0,
        "step_s": step_s,
        "first_token_s": [],
        "others_cpu_share": 0.0,
        "peak_memory_bytes": 1,
        "kv_pool_bytes": 1,
        "kv_used_bytes": 1,
        **more,
    }
    return Measured(**values)  # type: ignore[arg-type]


def test_a_decode_row_by_hand() -> None:
    # 2 sequences, 9 tokens before: 1,000,000 + 2 · (10 + 1) · 100 bytes, 2 · 1,000,000 · 2 FLOP.
    case = Case.decode(2, 9)
    assert COSTS.step_bytes([Span(9, 10)] * 2) == 1_002_200
    found = measured([[0.001, 0.001], [0.001, 0.001]], energy_j=0.4, energy_source="RAPL")
    row = device_row(make_row(case, found, COSTS, 512, Limits()), found, Limits())
    assert row.flops_per_byte == pytest.approx(4_000_000 / 1_002_200)
    assert row.row.tokens_per_s == pytest.approx(2000)
    # 4 GFLOP/s, and what 100 GB/s allow at that intensity.
    assert row.roof_share == pytest.approx(4e9 / (100e9 * 4_000_000 / 1_002_200))
    assert row.roof_share == pytest.approx(row.row.bandwidth_share)
    # 4 steps of 2 tokens.
    assert row.energy_j_per_token == pytest.approx(0.05)
    assert row.energy_source == "RAPL"


def test_a_prefill_row_counts_its_prompt_and_has_no_shares_without_limits() -> None:
    found = measured([[0.5, 0.5]] * 3, first_token_s=[1.0] * 3, energy_j=30.0)
    row = device_row(make_row(Case.prefill(100), found, COSTS, 50, None), found, None)
    assert row.energy_j_per_token == pytest.approx(0.1)
    assert row.roof_share is None
    assert row.row.bandwidth_share is None


def test_limits_take_the_best_of_what_reaches_for_them() -> None:
    rates = {"read": 2e9, "copy": 3e9, "fma_f32": 7e9, "matmul_f32": 5e9, "matmul_bf16": 9e9}
    found = DeviceLimits.of(rates, {})
    assert (found.read_bytes_per_s, found.read_from) == (3e9, "copy")
    assert (found.f32_flops_per_s, found.f32_from) == (7e9, "fma_f32")
    assert found.matrix_flops_per_s == 9e9
    assert found.arithmetic == (9e9, "bf16 products")
    assert (attainable(2, found), attainable(100, found), ridge(found)) == (6e9, 9e9, 3.0)
    slower = DeviceLimits.of({**rates, "matmul_bf16": 6e9}, {})
    assert slower.arithmetic == (7e9, "f32")
    case = Case.prefill(100)
    row = make_row(case, measured([[0.1]]), COSTS, 100, found)
    assert row.arithmetic_limit == "bf16 products"
    # 100 tokens of 900,000 weights and one row of logits of 100,000, in 0.1 s.
    assert row.arithmetic_share == pytest.approx(2 * (100 * 900_000 + 100_000) / 0.1 / 9e9)
    with pytest.raises(DeviceError, match="no limit of fma_f32 or matmul_f32 .*fma_f32: lost"):
        DeviceLimits.of({"copy": 1.0}, {"fma_f32": "lost"})


def test_work_is_what_the_modules_do() -> None:
    chain = limit_modules.CHAIN
    assert work_of("copy", 10) == chain * 10 * 3 * 4
    assert work_of("read", 10) == chain * 10 * (limit_modules.READ_ROWS + 2) * 4
    flops = 2 * limit_modules.FMA_CHAINS * limit_modules.FMA_LENGTH
    assert work_of("fma_f32", 10) == chain * 10 * flops


def test_the_drawing_has_the_roof_and_the_points_where_they_belong() -> None:
    roof = Roof(
        name="a <device>",
        limits=Limits(),
        points=[Point(label="decode", intensity=1.0, flops_per_s=40e9)],
    )
    root = ET.fromstring(draw([roof, Roof(name="other", limits=None, points=[])]))
    name = "{http://www.w3.org/2000/svg}"
    # x: 1 … 10 FLOP per byte, y: 10 … 1000 GFLOP/s, of axes 620 × 400 at (70, 40).
    (circle,) = root.iter(f"{name}circle")
    assert float(circle.get("cx", "")) == pytest.approx(70)
    assert float(circle.get("cy", "")) == pytest.approx(40 + 400 * (1 - 0.30103), abs=0.1)
    (line,) = root.iter(f"{name}polyline")
    corners = [tuple(map(float, c.split(","))) for c in line.get("points", "").split()]
    assert [round(x, 1) for x, _ in corners] == [70.0, 70 + round(620 * 0.60206, 1), 690.0]
    level = 40 + 400 * (1 - 1.60206 / 2)
    assert [round(y, 1) for _, y in corners] == [240.0, round(level, 1), round(level, 1)]
    assert "a <device>: roof of f32" in [t.text for t in root.iter(f"{name}text")]
