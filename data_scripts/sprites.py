"""Fetch the sheets of the Liberated Pixel Cup's characters, check them, write lpc_sprites64.npz.

The work is done by vidcourse.pixel_art, which the notebook 01_pixel_art builds;
`vidcourse data sprites` calls the same function. The SHA-256 of the archive is written into a lock
file when it is fetched for the first time, and must be the same ever after; the pixels of the
sheets must be those that the course was made with. The art is by the artists of the Liberated
Pixel Cup, CC-BY-SA 3.0 and GPL 3.0: name them beside every picture that shows it.
"""

import argparse
import sys
from pathlib import Path

try:
    from vidcourse.pixel_art import HOME, fetch_sprites
except ModuleNotFoundError:  # run as a file in a clone that isn't installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from vidcourse.pixel_art import HOME, fetch_sprites


def main(arguments: list[str] | None = None) -> int:
    "The command line; 0 when the file is there, 1 with a message when it could not be made."
    parser = argparse.ArgumentParser(
        prog="sprites.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = "folder to write into (default: VIDCOURSE_DATA, else the user's cache)"
    parser.add_argument("--out", type=Path, help=folder)
    archive = "address of a zip archive with the sheets (default: %(default)s)"
    parser.add_argument("--url", default=HOME, help=archive)
    checksums = "file of checksums (default: sprites.lock.json in the folder of --out)"
    parser.add_argument("--lock", type=Path, help=checksums)
    keep = "keep the downloaded archive (in sprites-archive)"
    parser.add_argument("--keep", action="store_true", help=keep)
    anew = "make lpc_sprites64.npz anew even if it is there"
    parser.add_argument("--force", action="store_true", help=anew)
    strange = "take sheets of the right sizes whose pixels the course doesn't know"
    parser.add_argument("--any-art", action="store_true", help=strange)
    options = parser.parse_args(arguments)
    try:
        print(fetch_sprites(**vars(options)))
    except (OSError, ValueError) as error:
        print(f"sprites.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sprites.py: stopped; run the same command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
