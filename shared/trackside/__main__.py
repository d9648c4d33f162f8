"""`python -m trackside`: the command line."""

from trackside.cli.app import main

if __name__ == "__main__":
    main()
