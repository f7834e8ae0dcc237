"""``python -m console`` is the ``headrace`` command."""

from console.main import main

if __name__ == "__main__":
    main()
