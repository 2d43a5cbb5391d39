"The package is what the notebooks say, the notebooks are clean, and the files that repeat each other agree."

import ast
import base64
import configparser
import filecmp
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import authoring
import pytest

import vidcourse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest on 3.10

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PACKAGE = sorted((ROOT / "vidcourse").rglob("*.py"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of what nbdev needs."
    copy = tmp_path_factory.mktemp("project")
    for name in ("nbs", "vidcourse"):
        shutil.copytree(
            ROOT / name,
            copy / name,
            ignore=shutil.ignore_patterns("__pycache__", "weights", ".ipynb_checkpoints"),
        )
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


def nbdev(command: str, folder: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / command],
        cwd=folder,
        env=os.environ | {"JUPYTER_DATA_DIR": str(folder / "jupyter")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_package_equals_notebooks(project):
    nbdev("nbdev_export", project)
    different = [
        str(path.relative_to(ROOT))
        for path in PACKAGE
        if not filecmp.cmp(path, project / path.relative_to(ROOT), shallow=False)
    ]
    extra = {path.relative_to(project) for path in (project / "vidcourse").rglob("*.py")} - {
        path.relative_to(ROOT) for path in PACKAGE
    }
    assert not different and not extra, f"run make export: {different} {extra}"
    settings = (project / "settings.ini").read_text(), (project / "pyproject.toml").read_text()
    assert settings == (
        (ROOT / "settings.ini").read_text(),
        (ROOT / "pyproject.toml").read_text(),
    ), "nbdev rewrites these files; keep them as it writes them"


def test_cleaning_changes_nothing(project):
    nbdev("nbdev_clean", project)
    dirty = [
        path.name
        for path in BOOKS
        if not filecmp.cmp(path, project / "nbs" / path.name, shallow=False)
    ]
    assert not dirty, f"run make export: {dirty}"


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"], (
        "GitHub refuses to show a notebook with widget state"
    )
    assert path.stat().st_size < 1.5 * 2**20
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    assert outputs or path.stem == "index", "no outputs are stored: make outputs NOTEBOOKS=..."
    user = getpass.getuser()
    private = (
        r"/home/\w|/root\b|/Users/\w|/tmp/\w|/var/folders|[A-Z]:\\+Users|site-packages|"
        + re.escape(str(ROOT))
        + ("" if user in ("root", "runner", "user") else rf"|\b{re.escape(user)}\b")
    )
    for output in outputs:
        assert output["output_type"] != "error", output.get("evalue")
        assert output.get("name") != "stderr", "".join(output["text"])[:200]
        data = output.get("data", {})
        assert "application/vnd.jupyter.widget-view+json" not in data, "a live widget is stored"
        text = "".join(
            "".join(value)
            for kind, value in [("text", output.get("text", "")), *data.items()]
            if kind.startswith("text")
        )
        assert not re.search(private, text), re.search(
            f".{{0,60}}(?:{private}).{{0,40}}", text
        )[0]
        assert not re.search(r"Warning:|Traceback \(most recent", text), text[:300]
        if output["output_type"] == "stream":
            assert not re.search(r"\d%\|.*\|", text), "a progress bar is stored: " + text[:200]
        if "image/png" in data:
            assert len(base64.b64decode("".join(data["image/png"]))) <= 2**20, (
                "a stored picture is larger than 1 MB"
            )


def test_versions_agree():
    config = configparser.ConfigParser()
    config.read(ROOT / "settings.ini")
    settings, project = (
        config["DEFAULT"],
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"],
    )
    assert settings["version"] == vidcourse.__version__ and "version" in project["dynamic"]
    assert settings["lib_name"] == project["name"] == vidcourse.__name__
    assert project["requires-python"] == f">={settings['min_python']}"
    assert settings["description"] == project["description"]
    assert settings["license"] == "apache2" and project["license"] == "Apache-2.0"
    assert (
        "allowed_cell_metadata_keys" in settings
        and "tags" in settings["allowed_cell_metadata_keys"]
    ), "cleaning would drop papermill's tag"


def test_what_the_notebooks_import_is_installed_for_readers():
    "By the course's own dependencies, not by the tools of its authors."
    from importlib.metadata import packages_distributions

    def spelled(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed, there, missing = (
        {spelled(re.match(r"[\w.-]+", name)[0]) for name in listed},
        packages_distributions(),
        set(),
    )
    for path in BOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            code = (
                re.sub(r"^(\s*)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)
                if cell["cell_type"] == "code"
                else ""
            )
            for node in ast.walk(ast.parse(code)):
                names = (
                    [name.name for name in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                for name in {name.split(".")[0] for name in names} - {
                    "vidcourse",
                    *sys.stdlib_module_names,
                }:
                    if not needed & {spelled(known) for known in there.get(name, [name])}:
                        missing.add(f"{path.stem}: {name}")
    assert not missing, f"not in pyproject.toml's dependencies: {sorted(missing)}"


def test_readme_is_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == authoring.readme(), (
        "run make export"
    )


def test_links_of_readme_and_contributing_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8"))
        missing = [
            link
            for link in links
            if not re.match(r"[a-z]+:|#", link) and not (ROOT / link).exists()
        ]
        assert not missing, f"{name}: {missing}"


def test_index_names_every_notebook():
    text = authoring.readme()
    assert [
        path.name for path in BOOKS if path.stem != "index" and f"nbs/{path.name}" not in text
    ] == []


def test_no_nbdev_at_run_time_and_every_public_function_is_described():
    for path in PACKAGE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for name in node.names
        } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(
            name.split(".")[0] in ("nbdev", "fastcore", "execnb") for name in imported
        ), path
        if path.name != "_modidx.py":
            bare = [
                node.name
                for node in tree.body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ]
            assert not set(bare) - {"Clips"}, (
                f"{path.name}: {bare} without a docstring"
            )  # Clips takes over that of its base


def test_runner_and_command_import_nothing_heavy():
    code = "import sys, vidcourse.runner, vidcourse.cli; print([name for name in ('torch', 'numpy', 'matplotlib', 'papermill', 'nbconvert') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_authoring_cleans_outputs(tmp_path):
    outputs = [
        dict(output_type="stream", name="stdout", text=f"saved {ROOT}/x\n"),
        dict(output_type="stream", name="stdout", text="done\n"),
        dict(output_type="stream", name="stderr", text="UserWarning: old"),
    ]
    kept, complaints = authoring.cleaned(outputs, authoring.private())
    assert [output.text for output in kept] == [
        "saved ./x\ndone\n"
    ] and complaints == "UserWarning: old"


def test_authoring_hides_temporary_folders():
    text = f"looked for {Path(tempfile.gettempdir()) / 'tmpab_12xy/work/nowhere/at/all'}, not in {Path(tempfile.gettempdir()) / 'tmp0000'}/run\n"
    kept, _ = authoring.cleaned(
        [dict(output_type="stream", name="stdout", text=text)], authoring.private()
    )
    assert kept[0].text == "looked for .../nowhere/at/all, not in .../run\n"
