"""Import rules of the trainer: who may know whom, by reading the files; nothing is imported."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

TRAINING = Path(__file__).resolve().parents[2] / "training"
ROOT_MODULES = set(
    "compatibility errors families files loop prompting protocols recorder regularisation seeding session step "
    "step_context".split()
)
"""What lies in no room. A new module belongs to a room; a room is a folder named for its role."""
HOSTS_OWN = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "comfy_kitchen", "folder_paths", "server", "node_helpers"}
NEVER = {
    "the ground": ({"errors", "protocols", "seeding"}, {"*"}),
    "the loop knows the host by protocols only": (
        {"loop", "recorder", "session", "step", "step_context", "evaluation", "objective"}, {"host", "grid", "job"},
    ),
    "data, adapters and files know no host": (
        {"dataset", "network", "optim", "performance", "runs", "tensors"}, {"host", "grid", "loop"},
    ),
    "captions know no optimizer": ({"captioning"}, {"optim", "loop", "network", "host"}),
    "a run knows no grid": ({"job", "regularisation"}, {"grid"}),
    "the host knows no run": ({"host"}, {"loop", "job", "runs", "grid", "dataset", "session"}),
}  # fmt: skip


def module_of(file: Path) -> str:
    parts = file.relative_to(TRAINING.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(TRAINING.rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """Modules of the trainer that ``module`` imports anywhere, also inside functions and for types only."""
    file = FILES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")
            base = ".".join([*above[: len(above) - node.level + 1], *([node.module] if node.module else [])])
            yield from (name if (name := f"{base}.{alias.name}") in FILES else base for alias in node.names)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


ARROWS = {module: {one for one in imported(module) if one != module} for module in FILES}
ROOMS: dict[str, set[str]] = defaultdict(set)
for start, ends in ARROWS.items():
    ROOMS[room_of(start)] |= {room_of(end) for end in ends} - {room_of(start)}


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    """Some circle of ``arrows``, empty if there is none."""
    done: set[str] = set()

    def walk(place: str, way: list[str]) -> list[str]:
        if place in way:
            return [*way[way.index(place) :], place]
        if place not in done:
            for following in sorted(arrows.get(place, ())):
                if found := walk(following, [*way, place]):
                    return found
            done.add(place)
        return []

    return next((found for place in sorted(arrows) if (found := walk(place, []))), [])


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"] and circle({"a": {"b"}, "b": set()}) == []
    assert len(FILES) > 100 and sum(map(len, ARROWS.values())) > 400


def test_no_module_and_no_room_imports_itself_by_a_detour():
    assert circle(ARROWS) == [] and circle(ROOMS) == []


def test_settings_stand_on_the_ground():
    assert ROOMS["config"] == {"errors"}


@pytest.mark.parametrize("rule", NEVER)
def test_rooms_do_not_know_what_is_above_them(rule):
    rooms, forbidden = NEVER[rule]
    assert rooms <= ROOMS.keys() | ROOT_MODULES
    for room in rooms:
        assert not (ROOMS[room] if forbidden == {"*"} else ROOMS[room] & forbidden), room


def test_only_the_host_room_imports_comfyui():
    for module, file in FILES.items():
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        own = {name for name in names if name.split(".")[0] in HOSTS_OWN}
        assert not own or room_of(module) == "host", (module, own)


def test_chance_has_one_room():
    """Generators are made in ``seeding.py`` alone, and nothing sets a global one's seed."""
    for module, file in FILES.items():
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        made = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
        assert not made & {"manual_seed", "Random", "Generator", "default_rng", "seed_all"} or module == "training.seeding", (
            module
        )


def test_the_hall_stays_small():
    assert {file.stem for file in TRAINING.glob("*.py")} - {"__init__"} == ROOT_MODULES


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for module, file in FILES.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
