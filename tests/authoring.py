"""For authors: `export` formats the notebooks and writes vidcourse/ and README.md from them,
`outputs` runs notebooks and keeps their outputs, `pictures` redraws nbs/images.

Use it by `make export`, `make outputs NOTEBOOKS="12_mocogan" PROFILE=laptop`, `make pictures`.
"""

import argparse
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


# The formatter and the linter -----------------------------------------------------------------

FENCE = re.compile(r"(?<=^```python\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def ruff(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    "Run ruff in a folder by the settings of this project."
    settings = str(ROOT / "pyproject.toml")
    return subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--config", settings],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def fences(book: nbformat.NotebookNode) -> list[str]:
    "The Python between ```python and ``` in the markdown of a notebook: folded solutions."
    pages = (cell.source for cell in book.cells if cell.cell_type == "markdown")
    return [code for page in pages for code in FENCE.findall(page)]


def with_fences(book: nbformat.NotebookNode, codes: list[str]) -> None:
    "Put other code, in the same order, between the fences of a notebook."
    new = iter(codes)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = FENCE.sub(lambda match: next(new), cell.source)


@contextmanager
def fences_as_notebooks(nbs: Path = NBS) -> Iterator[Path]:
    """A temporary folder `nbs` in which each notebook holds the fenced code of its namesake.

    So ruff formats and checks a folded solution by the rules for a cell.
    """
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "nbs"
        folder.mkdir()
        for path in sorted(nbs.glob("*.ipynb")):
            codes = fences(nbformat.read(path, 4))
            book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
            book.cells = [nbformat.v4.new_code_cell(code.rstrip("\n")) for code in codes]
            nbformat.write(book, folder / path.name)
        yield folder


def format_fences(nbs: Path = NBS) -> None:
    "Format the fenced code of notebooks in place."
    with fences_as_notebooks(nbs) as folder:
        done = ruff("format", "--quiet", folder=folder.parent)
        if done.returncode:
            sys.exit(f"{done.stderr}(in code between ```python and ``` of markdown cells)")
        for path in sorted(folder.iterdir()):
            book = nbformat.read(nbs / path.name, 4)
            codes = [cell.source + "\n" for cell in nbformat.read(path, 4).cells]
            if codes != fences(book):
                with_fences(book, codes)
                nbformat.write(book, nbs / path.name)


def format_code() -> None:
    "Format notebooks, their fenced code, tests and scripts in place; mend what is safe to mend."
    for command in (("check", "--fix-only", "--quiet"), ("format", "--quiet")):
        done = ruff(*command)
        if done.returncode:
            sys.exit(done.stderr)
    format_fences()


def by_file(said: str) -> dict[str, list[str]]:
    "Lines like `nbs/00_video.ipynb:cell 3:1:2: what is wrong`, by file."
    found = defaultdict(list)
    for line in said.splitlines():
        if match := re.match(r"(\S+\.(?:py|ipynb)):", line):
            found[match[1]].append(line)
    return dict(found)


def told(*arguments: str, nbs: Path) -> dict[str, list[str]]:
    "What a ruff command says of all code, by file; fenced code counts as its notebook's."
    said = ruff(*arguments, "--output-format=concise").stdout
    with fences_as_notebooks(nbs) as folder:
        fenced = ruff(*arguments, "--output-format=concise", folder=folder.parent).stdout
    return by_file(said + fenced.replace(".ipynb:cell", ".ipynb:fenced code"))


def unformatted(nbs: Path = NBS) -> list[str]:
    "Files, and notebooks with fenced code, that `format_code` would change or can't read."
    return sorted(told("format", "--check", nbs=nbs))


def complaints(nbs: Path = NBS) -> dict[str, list[str]]:
    "What `ruff check` says, by file."
    return told("check", nbs=nbs)


# What must not be stored ----------------------------------------------------------------------


def private() -> dict[str, str]:
    "Absolute paths that tell of the author's machine, and what stands for each in an output."
    paths = {str(ROOT): ".", str(Path.home()): "~", sys.prefix: "ENV"}
    if data := os.environ.get("VIDCOURSE_DATA"):
        paths[str(Path(data).resolve())] = "DATA"
    longest_first = sorted(paths.items(), key=lambda item: -len(item[0]))
    return {path: short for path, short in longest_first if len(path) > 3}


def anonymous(text: str, paths: dict[str, str]) -> str:
    "A text without absolute paths: neither those of `private` nor a kernel's temporary folders."
    temporary = re.escape(tempfile.gettempdir()) + r"(/tmp\w+)+/(work/)?"
    text = re.sub(temporary, ".../", text)
    for path, short in paths.items():
        text = text.replace(path, short)
    return text


def cleaned(outputs: list, paths: dict[str, str]) -> tuple[list, str]:
    """Outputs as they may be stored, and what stderr said.

    Streams are joined; live widgets, stderr and absolute paths are left out.
    """
    kept, complaints = [], ""
    for output in map(nbformat.from_dict, outputs):
        if output.output_type == "stream" and output.name == "stderr":
            complaints += output.text
            continue
        if "text" in output:
            output.text = anonymous(output.text, paths)
        data = output.get("data", {})
        for kind in {"text/plain", "text/html", "text/markdown"} & set(data):
            data[kind] = anonymous(data[kind], paths)
        if "execution_count" in output:
            output.execution_count = None
        if kept and kept[-1].output_type == output.output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept, complaints


def store(name: str, profile: str) -> None:
    "Run a notebook and keep its outputs in nbs/. A failing notebook leaves nbs/ as it was."
    from vidcourse.runner import execute, find_notebooks, still

    (path,) = find_notebooks([name], NBS)
    with tempfile.TemporaryDirectory() as out:
        outcome = execute(path, Path(out), {"profile": profile}, progress=sys.stderr.isatty())
        if outcome.status != "ok":
            sys.exit(f"{path.stem} failed, nothing was stored\n{outcome.traceback}")
        ran = still(nbformat.read(Path(out) / path.name, 4))
    book, paths = nbformat.read(path, 4), private()
    injected = "injected-parameters"
    cells = [cell for cell in ran.cells if injected not in cell.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in book.cells]:
        sys.exit(f"{path.stem} was edited while it ran, nothing was stored")
    for cell, new in zip(book.cells, cells):
        if cell.cell_type == "code":
            cell.outputs, said = cleaned(new.outputs, paths)
            cell.execution_count = None
            if said:
                print(f"{path.stem}: on stderr, so not stored:\n{said.strip()[:400]}")
    nbformat.write(book, path)
    size = path.stat().st_size // 1024
    print(f"{path.stem}: {outcome.minutes:.1f} min, stored, {size} kB")


# README and package ---------------------------------------------------------------------------


def readme(index: Path = NBS / "index.ipynb") -> str:
    "nbs/index.ipynb as Markdown, with links that start from the top of the repository."
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_notebook_node(nbformat.read(index, 4))

    def home(link):
        return link if re.match(r"[a-z]+:|#|/", link) else posixpath.normpath("nbs/" + link)

    text = re.sub(r"(\]\()([^)\s]+)(\))", lambda m: m[1] + home(m[2]) + m[3], text)
    text = re.sub(r'((?:src|href)=")([^"]+)(")', lambda m: m[1] + home(m[2]) + m[3], text)
    notice = "<!-- Made from nbs/index.ipynb by `make export`. Edit that. -->"
    return f"{notice}\n{text.strip()}\n"


def export() -> None:
    """Format and clean the notebooks, write the package and README.md.

    All is written, then the command fails if there is something that ruff refuses.
    """
    format_code()
    scripts = Path(sys.executable).parent
    # nbdev_clean signs notebooks in Jupyter's data folder: not in the author's
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"JUPYTER_DATA_DIR": home}
        for command in ("nbdev_clean", "nbdev_export"):
            subprocess.run([scripts / command], cwd=ROOT, check=True, env=environment)
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    if lines := [line for lines in complaints().values() for line in lines]:
        sys.exit("mend by hand:\n" + "\n".join(lines))


# Pictures of the front page -------------------------------------------------------------------


def enlarged(frames, scale: int):
    "Frames (... h w c) with every pixel a square of `scale` by `scale`."
    return frames.repeat(scale, -3).repeat(scale, -2)


def save_moving(name: str, clips, columns: int, side: int = 64) -> None:
    "Save uint8 clips (n t h w c) as a moving picture of the front page, each `side` px or more."
    from vidcourse.video import apng, grid

    scale = max(1, side // clips.shape[-2])
    page = enlarged(grid(clips, columns), scale)
    (NBS / "images" / f"{name}.png").write_bytes(apng(page, 8))


def picture_mocogan(name: str, rows: int) -> None:
    "Rows of one content each, columns of one motion each; and a still strip of the first row."
    import torch

    from vidcourse.mocogan import code_grid, load_pretrained
    from vidcourse.video import to_uint8, write

    model, rng = load_pretrained(name), torch.Generator().manual_seed(4)
    net, kinds = model.networks["generator"], model.config.categories
    columns = kinds * max(1, 8 // kinds)
    contents = net.draw(rows, rng=rng)
    wanted = torch.arange(columns) % kinds
    motions = net.draw(columns, category=wanted, rng=rng)
    clips = to_uint8(model.decode(code_grid(contents, motions)).clamp(-1, 1))
    save_moving(f"mocogan_{name}", clips, columns)
    strip = enlarged(clips[:4], max(1, 64 // clips.shape[-2]))
    write(NBS / "images" / f"mocogan_{name}_strip.png", strip)


def picture_characters() -> None:
    "Above, characters in actions that they were never shown doing; below, what NAVS makes of them."
    import numpy as np
    import torch

    from vidcourse import navs
    from vidcourse.sprites import character_grid
    from vidcourse.video import to_uint8

    model = navs.load_pretrained("characters")
    config = model.config
    data, cells = character_grid(config.statics, config.length, config.size, seed=0)
    held = torch.ones(config.statics, config.transients, dtype=torch.bool)
    held[tuple(model.codes.pairs.T)] = False  # the trained cells are part of the weights
    asked = np.flatnonzero(held.numpy()[tuple(cells.T)])[::7][:7]
    made = to_uint8(model.exchange(*torch.from_numpy(cells[asked]).long().T).clamp(-1, 1))
    save_moving("navs_characters", np.concatenate([data.frames[asked], made]), len(asked))


def picture_v3gan(name: str) -> None:
    "Background, foreground, mask and composite of four clips, a row each."
    import torch

    from vidcourse import v3gan
    from vidcourse.video import to_uint8

    model = v3gan.load_pretrained(name, 0)
    layers = model.sample_layers(4, rng=torch.Generator().manual_seed(2))
    still = layers.background.expand_as(layers.foreground)
    grey = (2 * layers.mask - 1).expand_as(layers.foreground)
    panes = torch.stack([still, layers.foreground, grey, layers.video], dim=1)
    save_moving(f"v3gan_{name}", to_uint8(panes.flatten(0, 1).clamp(-1, 1)), 4, side=128)


def picture_navs() -> None:
    "Above, the true clips of cells that were held out; below, what exchanged codes make of them."
    import torch

    from vidcourse import navs
    from vidcourse.navs.model import first_frames
    from vidcourse.video import to_float, to_uint8

    model = navs.load_pretrained("shapes", 0)
    config = model.config
    clips, cells = navs.shapes_grid(
        config.statics, config.transients, config.size, config.length
    )
    held = torch.ones(config.statics, config.transients, dtype=torch.bool)
    held[tuple(model.codes.pairs.T)] = False  # the trained cells are part of the weights
    asked = torch.where(held[tuple(cells.T)])[0][::4]
    true = to_float(first_frames(clips, config.length)[asked])
    made = model.exchange(*cells[asked].T)
    save_moving("navs_shapes", to_uint8(torch.cat([true, made]).clamp(-1, 1)), len(asked))


def picture_layered() -> None:
    "Above, true clips on a round path; below, first frames led along it. And people led by masks."
    import numpy as np
    import torch

    from vidcourse import layered
    from vidcourse.data import load
    from vidcourse.layered.model import hard
    from vidcourse.steered import paint_scenes, steered_shapes
    from vidcourse.video import to_float, to_uint8

    model = layered.load_pretrained("shapes", 0)
    data = steered_shapes(32, 2, model.config.size, seed=3)[:6]
    turn, middle = 2 * np.pi * np.arange(17) / 16, (model.config.size - 1) / 2
    x, y = (data.paths[:, :1] - middle).transpose(2, 0, 1)  # each goes round the frame's middle
    round_ = [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]
    paths = middle + np.stack(round_, 2)
    true, _ = paint_scenes(data.scenes, paths)
    first = to_float(data.frames[:, :1])[:, :, 0]
    led = model.rollout(first, torch.tensor(np.diff(paths, axis=1)).float())
    clips = np.concatenate([true, to_uint8(led.clamp(-1, 1))])
    save_moving("layered_shapes", clips, 6, side=128)
    people, model = (
        load("weizmann", size=64, progress=False),
        layered.load_pretrained("weizmann"),
    )
    real = to_float(np.stack([people.clip(i)[:17:2] for i in (2, 10, 28, 35)]))
    masks = torch.stack([hard(model.masks(real[:, :, t]))[:, 0] for t in range(9)], 1)
    led = model.rollout(real[:, :, 0], masks[:, 1:])
    rows = torch.cat([real, (2 * masks[:, None] - 1).expand_as(real), led])
    save_moving("layered_weizmann", to_uint8(rows.clamp(-1, 1)) & 0xF8, 4, side=128)


def pictures() -> None:
    "Redraw the pictures of the front page from the shipped weights and from the drawn clips."
    from vidcourse.shapes import moving_shapes

    (NBS / "images").mkdir(exist_ok=True)
    save_moving("shapes", moving_shapes(16, size=32, seed=3).frames, 8)
    picture_mocogan("shapes", 3)
    picture_mocogan("weizmann64", 1)
    picture_mocogan("characters", 1)
    picture_characters()
    picture_v3gan("shapes")
    picture_v3gan("characters")
    picture_navs()
    picture_layered()
    for path in sorted((NBS / "images").glob("*.png")):
        print(path.relative_to(ROOT), path.stat().st_size // 1024, "kB")


def main() -> None:
    "The command of the Makefile."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["export", "outputs", "pictures"])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--profile", default="auto")
    arguments = parser.parse_args()
    if arguments.what == "export":
        export()
    elif arguments.what == "pictures":
        pictures()
    else:
        from vidcourse.runner import find_notebooks

        for path in find_notebooks(arguments.notebooks, NBS):
            store(path.stem, arguments.profile)
        export()


if __name__ == "__main__":
    main()
