"""Ways to use a network that was pickled as a whole, where reading it alone does not tell how to build it."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote

from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.own_code import is_reference

_TRANSFORMERS = "transformers."
_TRACED = "torch.fx."
_TORCH = "torch.nn."


def named_by(weights: ForeignWeights | None, path: Path, *, of_package: bool = False) -> str:
    """How to name the network in a file on the command line, for the end of a message.

    Args:
        weights: What the file says. Its class is somebody else's word, so that a command with its name is given only
            where the code that defines it is in the current folder.
        path: The file.
        of_package: Whether its class is that of a package whose networks are known.
    """
    class_path = (weights.class_path if weights is not None else None) or ""
    module, _, name = class_path.rpartition(".")
    file = Path(module.replace(".", "/") + ".py")
    if not class_path:
        return (
            "name one with --arch source:name, hf:FOLDER for a network of transformers; or give a class or function of "
            "yours that builds it, with --arch module:package.file:name"
        )
    if class_path.startswith(_TRANSFORMERS):
        folder = path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-folder")
        # Not run here: a command that the user may copy, who is told that it runs what the file holds.
        found = f"torch.load({json.dumps(str(path))}, weights_only=False){weights.access if weights else ''}"
        code = f"import torch; {found}.save_pretrained({json.dumps(str(folder))})"
        return (
            f"where you trust it, which runs what it holds: python -c {quote(code)}, then give {quote(f'hf:{folder}')}"
        )
    if class_path.startswith(_TRACED):
        return "give what it was traced from, a class or function of yours, with --arch module:package.file:name"
    if class_path.startswith(_TORCH):
        return (
            "name one with --arch source:name; or put a function that builds it into a file of this folder, net.py, "
            "and give --arch module:net:FUNCTION"
        )
    if of_package:
        return (
            "it was changed after it was built: put a function that builds it so into a file of this folder, net.py, "
            "and give --arch module:net:FUNCTION"
        )
    if is_reference(f"{module}:{name}") and file.is_file():
        return f"if it is of your {file} here, give --arch module:{module}:{name}, which runs that code"
    if module == "__main__" and name.isidentifier():
        return (
            f"its class was defined in the script that saved it: put the class into a file of this folder, net.py, and "
            f"give --arch module:net:{name}"
        )
    return "run where the code that defines it can be found, with --arch module:package.file:function-or-class"
