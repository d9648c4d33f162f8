"""`python -m trackside_trainer [SLOTS]`: the trainer service with settings from the environment."""

from __future__ import annotations

import sys

from trackside.config import Settings
from trackside.errors import TracksideError
from trackside_trainer.agent import main

if __name__ == "__main__":
    try:
        sys.exit(main(Settings.from_environ(), slots=sys.argv[1] if len(sys.argv) > 1 else "auto"))
    except TracksideError as error:
        sys.exit(f"trackside trainer: {error.message}")
