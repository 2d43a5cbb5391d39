"""The house: which module may import which, and what every system offers.

Arrows point down. A module imports from floors below its own; from its own floor where that makes
no circle; a system never imports another. Notebooks keep the same order: what one imports was
exported by one that sorts before it.
"""

import ast
import dataclasses
import graphlib
import importlib
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vidcourse"
SYSTEMS = sorted(path.parent.name for path in PACKAGE.glob("*/model.py"))

FLOORS = (
    # the ground: what a clip is, drawing it, measuring it, a notebook's opening
    {"shapes", "drifting", "scenery", "video", "metrics", "course", "diagrams"},
    # the world outside, the loop, measures with a network inside
    {"decoder", "readers", "sources", "files", "pixel_art", "sprites", "sprite_metrics"}
    | {"checkpoints", "updates", "training", "perceptual"},
    # clips; what training leaves; losses that games share; records of runs
    {"data", "steered", "steered_characters", "systems", "adversarial", "augment", "study"},
    set(SYSTEMS),
    # the doors
    {"cli", "runner", "pages"},
)


# Who imports whom -----------------------------------------------------------------------------


def module_names(package: Path) -> dict[str, Path]:
    "The modules of a package, as `mocogan.model` or, for a folder, `mocogan`."
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and not name.startswith("_"):
            found[name] = path
    return found


def imported(tree: ast.AST, known: set[str], here: str = "") -> set[str]:
    "The modules of vidcourse, out of `known`, that the code of module `here` imports."
    wanted = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted |= {name.name.removeprefix("vidcourse.") for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from ..systems import System` in mocogan.model: one name less for each further dot
            parts = here.split(".")
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = (node.module or "").removeprefix("vidcourse").removeprefix(".")
            if not node.level and not (node.module or "").startswith("vidcourse"):
                continue
            base = ".".join(filter(None, (base, module)))
            for name in node.names:
                full = f"{base}.{name.name}" if base else name.name
                wanted.add(full if full in known else base)
    return wanted & known


def arrows(package: Path) -> dict[str, set[str]]:
    "For each module of a package, those that it imports."
    paths = module_names(package)
    found = {}
    for name, path in paths.items():
        # a folder's own __init__ stands where a module in the folder would
        here = f"{name}.__init__" if path.name == "__init__.py" else name
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[name] = imported(tree, set(paths), here) - {name}
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int | None:
    "The floor of a module, counted from the ground; None for one that has no place."
    return next((k for k, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def faults(graph: dict[str, set[str]]) -> list[str]:
    "What in a graph of imports breaks the rules of the house."
    found = [f"{name} has no floor in FLOORS" for name in graph if floor(name) is None]
    for name, targets in graph.items():
        for target in targets:
            both = floor(name), floor(target)
            if None in both or room(name) == room(target):
                continue
            if room(name) in SYSTEMS and room(target) in SYSTEMS:
                found.append(f"{name} imports {target}, of another system")
            elif both[1] > both[0]:
                found.append(f"{name} imports {target}, which is above it")
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        found.append("circle: " + " < ".join(error.args[1]))
    return sorted(found)


def test_arrows_point_down():
    assert faults(arrows(PACKAGE)) == []


@pytest.mark.parametrize(
    "file, line, fault",
    [
        (
            "mocogan/latents.py",
            "from vidcourse.v3gan.masking import composite",
            "mocogan.latents imports v3gan.masking, of another system",
        ),
        (
            "navs/model.py",
            "from ..mocogan import code_grid",
            "navs.model imports mocogan, of another system",
        ),
        (
            "shapes.py",
            "def later():\n    from .systems import System",
            "shapes imports systems, which is above it",
        ),
        (
            "training.py",
            "import vidcourse.navs.triplet",
            "training imports navs.triplet, which is above it",
        ),
        ("mocogan/latents.py", "from .model import train", "circle"),
        ("attic.py", "", "attic has no floor in FLOORS"),
    ],
)
def test_a_planted_import_is_found(file, line, fault, tmp_path):
    copy = tmp_path / "vidcourse"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    before = faults(arrows(copy))
    with (copy / file).open("a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    assert any(found.startswith(fault) for found in set(faults(arrows(copy))) - set(before))


def test_a_notebook_imports_only_what_earlier_ones_export():
    known = set(module_names(PACKAGE))
    exported = set()
    late = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        sources = [
            "".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"
        ]
        for source in sources:
            code = re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.MULTILINE)
            for name in imported(ast.parse(code), known) - exported:
                gathered = known & {other for other in exported if other.startswith(f"{name}.")}
                if not (name in SYSTEMS and gathered):
                    late.append(f"{path.stem} imports {name}")
        for source in sources:
            if match := re.search(r"^#\|\s*default_exp\s+([\w.]+)", source, re.MULTILINE):
                exported.add(match[1])
    assert not late
    assert exported >= known - set(SYSTEMS)


# What every system offers ---------------------------------------------------------------------


@pytest.fixture(params=SYSTEMS)
def system(request):
    "The package of each system."
    return importlib.import_module(f"vidcourse.{request.param}")


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_a_system_has_the_five_names(system):
    from vidcourse.systems import System

    name = system.__name__.split(".")[-1]
    assert issubclass(system.SYSTEM, System) and system.SYSTEM.name == name
    assert set(system.CONFIGS) == {"paper", "gpu", "laptop", "smoke", "showcase"}
    for config in system.CONFIGS.values():
        assert isinstance(config, system.SYSTEM.Config)
        assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    assert {"SYSTEM", "CONFIGS", "networks", "train", "load_pretrained"} <= set(system.__all__)


def test_functions_of_the_same_name_take_the_same(system):
    names = parameters(system.train)
    assert names[:2] == ["clips", "config"]
    if "options" in names:  # handed on, so described in words
        names += re.findall(r"\w+", inspect.getdoc(system.train).split("`options`:")[1])
    assert set(names) >= {
        *("start", "out", "steps", "seed", "resume", "device", "progress", "on_log"),
        *("log_every", "save_every"),
    }
    assert parameters(system.SYSTEM.sample)[:3] == ["n", "length", "rng"]
    assert parameters(system.load_pretrained) == ["name", "seed"]


def test_networks_are_built_from_sizes_alone(system):
    config = system.CONFIGS["smoke"]
    (sizes_class,) = [base for base in type(config).__mro__ if base.__name__ == "Sizes"]
    names = [field.name for field in dataclasses.fields(sizes_class)]
    sizes = sizes_class(**{name: getattr(config, name) for name in names})
    with torch.device("meta"):
        shapes = [
            {
                f"{part}.{name}": tensor.shape
                for part, network in system.networks(given).items()
                for name, tensor in network.state_dict().items()
            }
            for given in (sizes, config)
        ]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 4


# The field's one name, and others that it is known by
SYNONYMS = {
    "size": {"resolution", "image_size", "pixels", "height"},
    "length": {"frames", "clip_length", "video_length", "time"},
    "frame_step": {"stride", "every", "frame_stride", "skip"},
    "content": {"content_dim", "dim_content", "z_content"},
    "motion": {"motion_dim", "dim_motion", "z_motion"},
    "width": {"channels", "base_width", "ngf", "filters"},
    "discriminator_width": {"critic_width", "width_discriminator", "ndf"},
    "batch": {"batch_size"},
    "steps": {"iterations", "updates", "n_steps", "epochs"},
    "rate_generator": {"lr", "learning_rate", "lr_generator", "generator_rate", "rate"},
    "rate_discriminator": {"rate_critic", "lr_discriminator", "discriminator_rate"},
    "betas": {"adam_betas", "beta1"},
    "weight_decay": {"l2", "wd"},
    "r1": {"gamma", "gradient_penalty", "penalty"},
    "ema": {"average", "averaging", "ema_decay"},
    "decay": {"schedule", "decay_rates", "rate_decay"},
    "precision": {"dtype", "amp", "bf16"},
    "image_discriminator": {"image_critic", "frame_discriminator"},
    "video_discriminator": {"video_critic", "clip_discriminator"},
    "image_generator": {"painter", "frame_painter"},
}
EVERYWHERE = {"size", "length", "frame_step", "width", "batch", "steps", "ema", "decay"}
EVERYWHERE |= {"precision", "rate_generator", "betas", "weight_decay"}
IN_GAMES = {"discriminator_width", "rate_discriminator"}


def fields(system) -> dict[str, object]:
    "The fields of a system's configuration, with their types."
    return {field.name: field.type for field in dataclasses.fields(system.SYSTEM.Config)}


def test_a_field_has_its_one_name(system):
    names = set(fields(system))
    odd = {synonym: name for name, others in SYNONYMS.items() for synonym in others & names}
    assert not odd, "call each by its name in every system"
    assert EVERYWHERE <= names
    game = any("discriminator" in name for name in system.networks(system.CONFIGS["smoke"]))
    assert not game or names >= IN_GAMES


def test_fields_of_one_name_have_one_type():
    types = {}
    for name in SYSTEMS:
        for field, kind in fields(importlib.import_module(f"vidcourse.{name}")).items():
            types.setdefault(field, {}).setdefault(str(kind), []).append(name)
    assert {field: kinds for field, kinds in types.items() if len(kinds) > 1} == {}
