import importlib
import json
import sys

store_plan = importlib.import_module("store_plan")


def test_a_plan_multiplies_what_a_pair_takes(tmp_path, monkeypatch, capsys):
    options = ["--widths", "64", "32", "--pairs", "3_000_000", "--quick"]
    argv = ["store_plan.py", *options, "--json", str(tmp_path / "plan.json")]
    monkeypatch.setattr(sys, "argv", argv)
    assert store_plan.main() == 0
    found = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["dtypes"]
    assert round(found["float32"]["bytes_per_pair"]) == 384
    assert round(found["bfloat16"]["bytes_per_pair"]) == 192
    assert round(found["int8"]["bytes_per_pair"]) == 96 + 8
    assert all(one["written_per_second"] > 0 < one["read_per_second"] for one in found.values())
    rows = {
        line.split("|")[1].strip(): line.split("|")
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    }
    assert rows["bfloat16"][4].strip() == "46"  # of 65,536 pairs each
    hours = 3e6 / found["int8"]["written_per_second"] / 3600
    assert rows["int8"][6].strip() == f"{hours:,.1f}"
