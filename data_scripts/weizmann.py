"""Fetch the Weizmann actions (Gorelick et al. 2007), check them, and write weizmann64.npz.

The work is done by vidcourse.files, which the notebook 01_outside_files builds;
`vidcourse data weizmann` calls the same function. The SHA-256 of every archive is written into
a lock file when it was used for the first time, and must be the same ever after.
"""

import argparse
import sys
from pathlib import Path

try:
    from vidcourse.files import HOME, fetch_weizmann
except ModuleNotFoundError:  # run as a file in a clone that isn't installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from vidcourse.files import HOME, fetch_weizmann


def main(arguments: list[str] | None = None) -> int:
    "The command line; 0 when the file is there, 1 with a message when it could not be made."
    parser = argparse.ArgumentParser(
        prog="weizmann.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write into (default: VIDCOURSE_DATA, else the user's cache)",
    )
    parser.add_argument(
        "--base-url",
        default=HOME,
        help="address of the folder that holds bend.zip, jack.zip, wave1.zip and wave2.zip "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--lock",
        type=Path,
        help="file of checksums (default: weizmann.lock.json in the folder of --out)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the downloaded archives (in weizmann-archives)",
    )
    parser.add_argument(
        "--force", action="store_true", help="make weizmann64.npz anew even if it is there"
    )
    options = parser.parse_args(arguments)
    try:
        print(
            fetch_weizmann(
                options.out, options.base_url, options.lock, options.keep, options.force
            )
        )
    except (OSError, ValueError) as error:
        print(f"weizmann.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "weizmann.py: stopped; archives that arrived whole are kept, "
            "the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
