import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "store_plan.py"


def test_a_plan_multiplies_what_a_pair_takes(tmp_path):
    options = ["--widths", "64", "32", "--pairs", "3_000_000", "--quick"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--json", str(tmp_path / "plan.json")],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["dtypes"]
    assert round(found["float32"]["bytes_per_pair"]) == 384
    assert round(found["bfloat16"]["bytes_per_pair"]) == 192
    assert round(found["int8"]["bytes_per_pair"]) == 96 + 8
    assert all(one["written_per_second"] > 0 < one["read_per_second"] for one in found.values())
    rows = {
        line.split("|")[1].strip(): line.split("|")
        for line in done.stdout.splitlines()
        if "|" in line
    }
    assert rows["bfloat16"][4].strip() == "46"  # of 65,536 pairs each
    hours = 3e6 / found["int8"]["written_per_second"] / 3600
    assert rows["int8"][6].strip() == f"{hours:,.1f}"
