"""``python -m infra.cli`` is ``fpso``."""

from infra.cli import main

if __name__ == "__main__":
    main(prog_name="fpso")
