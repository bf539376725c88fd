"""``python -m upfusion`` is the ``upfusion`` command."""

from upfusion.cli.app import main

if __name__ == "__main__":
    main()
