"""How the packages are built: rooms in an order, no circles, nothing that imports commands."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from delphi_adapters.__main__ import COMMANDS as ADAPTER_COMMANDS
from sparsify_crosscoder.__main__ import COMMANDS
from tests.support import house

ROOT = Path(__file__).parents[1]
ORDERS = {
    "sparsify_crosscoder": (
        house.GROUND,
        *("text", "crosscoders", "harvest", "store", "training", "runs"),
        *("evaluation", "interventions", "exports", "commands"),
    ),
    "delphi_adapters": (
        house.GROUND,
        *("delphi", "clients", "judging", "explaining", "audit", "causes"),
        *("pictures", "report", "explorer", "commands"),
    ),
}
MODULES = house.read_modules(ROOT, ORDERS)
IMPORTS = house.imports(MODULES)
SUBCOMMANDS = [module for module, _, _ in [*COMMANDS.values(), *ADAPTER_COMMANDS.values()]]

HEAVY = ("torch", "transformers", "datasets", "sparsify", "peft", "scipy", "delphi", "nnsight")

# Their options still stand beside what they run; sparsify's own parser reads the first three's.
HEAVY_COMMANDS = {
    *("train", "harvest", "baselines", "steer", "persona", "transfer", "toy"),
    *("export", "audit", "explain", "rubric", "reliability"),
}


def test_no_modules_import_each_other_in_a_circle():
    assert house.circles(house.between_modules(IMPORTS, MODULES)) == []


def test_no_rooms_import_each_other_in_a_circle():
    assert house.circles(house.between_rooms(IMPORTS, MODULES)) == []


def test_modules_import_only_from_rooms_before_theirs():
    assert house.against_the_order(IMPORTS, MODULES, ORDERS) == []


def test_nothing_imports_a_command():
    found = house.who_imports_commands(IMPORTS, MODULES, SUBCOMMANDS)
    assert found == []


def test_only_commands_and_what_serves_them_know_the_command_line():
    others = [m for m in MODULES.values() if m.room != house.COMMANDS]
    found = house.namespaces(m for m in others if m.name != "sparsify_crosscoder.command_line")
    assert found == []


def test_no_function_has_more_than_eight_parameters():
    # A GPU's kernels can be given nothing but pointers, sizes and strides, one by one.
    found = house.long_signatures((m for m in MODULES.values() if "triton" not in m.name), 8)
    assert found == []


def test_the_forward_pass_and_the_selection_fit_a_screen():
    room = [m for m in MODULES.values() if m.name.startswith("sparsify_crosscoder.crosscoders.")]
    found = house.lengths(room, ["Crosscoder.forward", "_select", "select"])
    assert len(found) >= 2
    assert [one for one, lines in found.items() if lines >= 45] == []


def test_no_room_of_the_adapters_is_more_than_a_fifth_of_them():
    shares = house.room_shares(m for m in MODULES.values() if m.package == "delphi_adapters")
    assert {room: share for room, share in shares.items() if share > 0.2} == {}


def test_every_module_says_what_it_is():
    assert house.without_docstring(MODULES.values()) == []


def test_importing_the_package_and_its_autoload_loads_nothing_but_the_standard_library():
    code = (
        "before = set(sys.modules); import sparsify_crosscoder._autoload;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names))"
    )
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.append({str(ROOT)!r}); {code}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.split() == ["sparsify_crosscoder"], done.stderr


def test_help_and_wrong_options_of_light_commands_load_no_heavy_library():
    """One new process for all: whoever asks for help should not wait for torch."""
    commands = {**COMMANDS, **ADAPTER_COMMANDS}
    assert set(commands) >= HEAVY_COMMANDS
    light = {name: of[:2] for name, of in commands.items() if name not in HEAVY_COMMANDS}
    code = f"""
        import contextlib, importlib, io, sys
        for name, (module, function) in {light!r}.items():
            for option in ("--help", "--no_such_option"):
                said = io.StringIO()
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    try:
                        getattr(importlib.import_module(module), function)([option])
                    except SystemExit as end:
                        code = end.code or 0
                    else:
                        raise AssertionError(f"{{name}} {{option}} goes on")
                expected = ("usage: ", 0) if option == "--help" else (": error: ", 2)
                assert expected[0] in said.getvalue() and code == expected[1], name
                loaded = sorted({set(HEAVY)!r}.intersection(sys.modules))
                assert not loaded, f"{{name}} {{option}} loads {{', '.join(loaded)}}"
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


# A house with each of the faults once.
FAULTS = {
    "lib/__init__.py": '''
        """Face."""
        TYPE_CHECKING = False
        if TYPE_CHECKING:
            from .upper.crowd import crowd
        else:
            from .upper import crowd as late
    ''',
    "lib/__main__.py": '"""Door."""\nCOMMANDS = {"go": "lib.commands.go"}',
    "lib/floor.py": """
        def late():
            def later():
                from .upper import crowd
            return later
    """,
    "lib/plain.py": '"""Sees the face."""\nfrom . import thing',
    "lib/lower/__init__.py": "",
    "lib/lower/one.py": '''
        """One half of a circle."""
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from .two import Two
    ''',
    "lib/lower/two.py": '"""The other half."""\nfrom ..lower import one\nfrom .. import floor',
    "lib/upper/__init__.py": "",
    "lib/upper/crowd.py": '''
        """Many parameters."""
        from argparse import Namespace
        class Crosscoder:
            def forward(self, a, b, *, c):
                x = 1
                y = 2
                return x + y
        def crowd(a, /, b, *rest, c, d): ...
    ''',
    "lib/upper/reader.py": '"""Reads."""\nimport lib.lower.one\nfrom lib.commands import shared',
    "lib/commands/__init__.py": '"""Commands."""',
    "lib/commands/shared.py": '"""Of all commands."""',
    "lib/commands/go.py": '"""Go."""\nfrom .shared import x\nimport argparse\nargparse.Namespace()',
    "lib/commands/stop.py": '"""Stop."""\nfrom . import go',
    "lib/garage/__init__.py": '"""In no plan."""',
    "addon/__init__.py": '"""Face."""',
    "addon/commands/__init__.py": "",
    "addon/commands/run.py": '"""Run."""\nfrom lib.commands.shared import x\nfrom lib import thing',
    "lib/upper/wrong.py": '"""Knows its users."""\nimport addon.commands.run',
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    root = tmp_path_factory.mktemp("house")
    for name, text in FAULTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).strip(), encoding="utf-8")
    return house.read_modules(root, ["lib", "addon"])


def test_circles_are_found_between_modules_and_between_rooms(faulty):
    found = house.imports(faulty)
    assert house.Import("lib.lower.one", "lib.lower.two", True) in found
    assert house.Import("lib.lower.two", "lib.lower.one", False) in found
    assert house.Import("lib", "lib.upper.crowd", True) in found
    assert house.Import("lib", "lib.upper.crowd", False) in found
    assert house.circles(house.between_modules(found, faulty)) == [
        ["lib.lower.one", "lib.lower.two"],
    ]
    assert house.circles(house.between_rooms(found, faulty)) == [
        ["lib.ground floor", "lib.lower", "lib.upper"]
    ]


def test_arrows_against_the_order_are_found_late_ones_too(faulty):
    orders = {"lib": (house.GROUND, "lower", "upper", "commands"), "addon": ("commands",)}
    assert house.against_the_order(house.imports(faulty), faulty, orders) == [
        "lib -> lib.upper.crowd",
        "lib.floor -> lib.upper.crowd",
        "lib.garage is in no known room",
        "lib.plain -> lib",
        "lib.upper.reader -> lib.commands.shared",
        "lib.upper.wrong -> addon.commands.run",
    ]


def test_who_imports_a_command_is_found(faulty):
    subcommands = ["lib.commands.go", "lib.commands.stop"]
    assert house.who_imports_commands(house.imports(faulty), faulty, subcommands) == [
        "addon.commands.run -> lib.commands.shared",
        "lib.commands.stop -> lib.commands.go",
        "lib.upper.reader -> lib.commands.shared",
        "lib.upper.wrong -> addon.commands.run",
    ]


def test_what_is_too_large_or_says_nothing_is_found(faulty):
    modules = faulty.values()
    assert house.namespaces(modules) == ["lib.commands.go", "lib.upper.crowd"]
    assert house.long_signatures(modules, 3) == ["lib.upper.crowd.crowd"]
    assert house.long_signatures(modules, 2) == [
        "lib.upper.crowd.Crosscoder.forward",
        "lib.upper.crowd.crowd",
    ]
    assert house.lengths(modules, ["Crosscoder.forward", "later"]) == {
        "lib.floor.late.later": 2,
        "lib.upper.crowd.Crosscoder.forward": 4,
    }
    assert house.without_docstring(modules) == ["lib.floor"]
    shares = house.room_shares(m for m in modules if m.package == "addon")
    assert shares == {"": 0.0, "commands": 1.0}
