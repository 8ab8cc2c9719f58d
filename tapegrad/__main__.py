"""``python -m tapegrad`` is the command ``tapegrad``."""

from __future__ import annotations

if __name__ == "__main__":
    from tapegrad.cli import main

    main()
