"""``python -m onnxpress``: the command line."""

from onnxpress.cli import main

if __name__ == "__main__":
    main(prog_name="onnxpress")
