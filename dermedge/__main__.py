"""`python -m dermedge`."""

from dermedge.cli import main

if __name__ == "__main__":
    main()
