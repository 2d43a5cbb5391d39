"`python -m vidcourse` is the command `vidcourse`."
import sys

from vidcourse.cli import main

if __name__ == "__main__":
    sys.exit(main())
