"""For authors: `export` writes vidcourse/ and README.md from nbs/, `outputs` runs notebooks and keeps their outputs, `pictures` redraws nbs/images.

Use it by `make export`, `make outputs NOTEBOOKS="12_mocogan" PROFILE=laptop` and `make pictures`.
"""

import argparse
import os
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


# What must not be stored -------------------------------------------------------------------------------------------------------------


def private() -> dict[str, str]:
    "Absolute paths that say something about the author's machine, and what stands for each in a stored output."
    data = os.environ.get("VIDCOURSE_DATA")
    paths = {str(ROOT): ".", str(Path.home()): "~", sys.prefix: "ENV"} | (
        {str(Path(data).resolve()): "DATA"} if data else {}
    )
    return {
        path: short
        for path, short in sorted(paths.items(), key=lambda item: -len(item[0]))
        if len(path) > 3
    }


def cleaned(outputs: list, paths: dict[str, str]) -> tuple[list, str]:
    "Outputs as they may be stored: streams joined, no live widgets, no stderr, no absolute paths; and what stderr said."
    kept, complaints = [], ""
    temporary = re.compile(
        re.escape(tempfile.gettempdir()) + r"/tmp\w+/(work/)?"
    )  # the folder that a kernel works in, and the ones it makes
    for output in outputs:
        output = nbformat.from_dict(output)
        if output.output_type == "stream" and output.name == "stderr":
            complaints += output.text
            continue
        for holder, key in [(output, "text")] + [
            (output.get("data", {}), kind)
            for kind in ("text/plain", "text/html", "text/markdown")
        ]:
            if key in holder:
                holder[key] = temporary.sub(".../", holder[key])
                for path, short in paths.items():
                    holder[key] = holder[key].replace(path, short)
        if "execution_count" in output:
            output.execution_count = None
        if kept and output.output_type == "stream" and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept, complaints


def store(name: str, profile: str) -> None:
    "Run a notebook and keep its outputs in nbs/, cleaned. A failing notebook leaves nbs/ as it was."
    from vidcourse.runner import execute, find_notebooks, still

    (path,) = find_notebooks([name], NBS)
    with tempfile.TemporaryDirectory() as out:
        outcome = execute(path, Path(out), {"profile": profile}, progress=sys.stderr.isatty())
        if outcome.status != "ok":
            sys.exit(f"{path.stem} failed, nothing was stored\n{outcome.traceback}")
        ran = still(nbformat.read(Path(out) / path.name, 4))
    book, paths = nbformat.read(path, 4), private()
    cells = [
        cell for cell in ran.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    assert [cell.source for cell in cells] == [cell.source for cell in book.cells], (
        "the notebook was edited while it ran"
    )
    for cell, new in zip(book.cells, cells):
        if cell.cell_type == "code":
            cell.outputs, complaints = cleaned(new.outputs, paths)
            cell.execution_count = None
            if complaints:
                print(
                    f"{path.stem}: left out of the outputs, since it went to stderr:\n{complaints.strip()[:400]}"
                )
    nbformat.write(book, path)
    print(f"{path.stem}: {outcome.minutes:.1f} min, stored, {path.stat().st_size // 1024} kB")


# README and package ------------------------------------------------------------------------------------------------------------------


def readme(index: Path = NBS / "index.ipynb") -> str:
    "nbs/index.ipynb as Markdown, with links that start from the top of the repository."
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_notebook_node(nbformat.read(index, 4))

    def home(link):
        return link if re.match(r"[a-z]+:|#|/", link) else posixpath.normpath("nbs/" + link)

    text = re.sub(r"(\]\()([^)\s]+)(\))", lambda m: m[1] + home(m[2]) + m[3], text)
    text = re.sub(r'((?:src|href)=")([^"]+)(")', lambda m: m[1] + home(m[2]) + m[3], text)
    return (
        "<!-- Made from nbs/index.ipynb by `make export`. Edit that. -->\n"
        + text.strip()
        + "\n"
    )


def export() -> None:
    "Clean the notebooks, write the package and README.md."
    scripts = Path(sys.executable).parent
    with (
        tempfile.TemporaryDirectory() as home
    ):  # nbdev_clean signs notebooks in Jupyter's data folder
        for command in ("nbdev_clean", "nbdev_export"):
            subprocess.run(
                [scripts / command],
                cwd=ROOT,
                check=True,
                env=os.environ | {"JUPYTER_DATA_DIR": home},
            )
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")


# Pictures of the front page ----------------------------------------------------------------------------------------------------------


def pictures() -> None:
    "Redraw the pictures of the front page from the shipped weights and from the drawn clips."
    import torch

    from vidcourse import navs, v3gan
    from vidcourse.mocogan import code_grid, load_pretrained
    from vidcourse.navs.model import first_frames
    from vidcourse.shapes import moving_shapes
    from vidcourse.video import apng, grid, to_float, to_uint8, write

    images = NBS / "images"
    images.mkdir(exist_ok=True)

    def large(frames, scale):
        return frames.repeat(scale, -3).repeat(scale, -2)

    def moving(name: str, clips, columns: int, scale: int = 2) -> None:
        (images / f"{name}.png").write_bytes(apng(large(grid(clips, columns), scale), 8))

    moving("shapes", moving_shapes(16, size=32, seed=3).frames, 8)
    for name, rows in (("shapes", 3), ("weizmann", 2)):
        model = load_pretrained(name)
        net, g, kinds = (
            model.networks["generator"],
            torch.Generator().manual_seed(4),
            model.config.categories,
        )
        contents, motions = (
            net.draw(rows, rng=g),
            net.draw(2 * kinds, category=torch.arange(2 * kinds) % kinds, rng=g),
        )
        clips = to_uint8(model.decode(code_grid(contents, motions)).clamp(-1, 1))
        moving(f"mocogan_{name}", clips, 2 * kinds)
        write(images / f"mocogan_{name}_strip.png", large(clips[:4], 2))
    layers = v3gan.load_pretrained("shapes", 0).sample_layers(
        4, rng=torch.Generator().manual_seed(2)
    )
    still, grey = (
        layers.background.expand_as(layers.foreground),
        (2 * layers.mask - 1).expand_as(layers.foreground),
    )
    panes = torch.stack([still, layers.foreground, grey, layers.video], dim=1).flatten(0, 1)
    moving("v3gan_shapes", to_uint8(panes.clamp(-1, 1)), 8)
    star = navs.load_pretrained("shapes", 0)
    size = star.config
    clips, cells = navs.shapes_grid(size.statics, size.transients, size.size, size.length)
    held = torch.ones(size.statics, size.transients, dtype=torch.bool)
    held[tuple(star.codes.pairs.T)] = False  # the trained cells are part of the weights
    asked = torch.where(held[tuple(cells.T)])[0][::4]
    true = to_float(first_frames(clips, size)[asked])
    moving(
        "navs_shapes",
        to_uint8(torch.cat([true, star.exchange(*cells[asked].T)]).clamp(-1, 1)),
        len(asked),
    )
    for path in sorted(images.glob("*.png")):
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
