"""``python -m benchmarks``: the environment first, since it must be there before torch is."""

from benchmarks.environment import with_fixed_environment

if __name__ == "__main__":
    with_fixed_environment()
    from benchmarks.cli import main

    main()
