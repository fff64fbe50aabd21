"""``python -m fleet.cli`` is ``holdfast``; `holdfast up` starts its children this way."""

from fleet.cli import main

if __name__ == "__main__":
    main()
