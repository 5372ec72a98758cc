"""The command line as a module: ``python -m ddim_ode COMMAND``."""

from ddim_ode.cli import main

if __name__ == "__main__":
    main(prog_name="ddim-ode")
