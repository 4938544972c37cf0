"""`prune recipe new`: a recipe to start from, by flags, or by questions on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from prunecli.cli.declared import Argument, Option
from prunecli.cli.next_steps import after_recipe
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable
from prunecli.errors import PruneError, RecipeError

_MODEL, _DATA, _METHOD, _SHARE, _FILE = "cifar:resnet20", "digits", "l1", 0.5, "recipe.yaml"
_SHARES = ("keep_fraction", "connectivity", "connections", "keep_share", "sparsity", "ratio")
"""What methods call how much they remove, or leave; a method's own comes before what it shares with others."""
_HEAD = """\
# yaml-language-server: $schema=prune.schema.json
# Check it with `prune recipe check`, see every value with `prune recipe show`, run it with `prune run`.
version: 1
"""
_TRAINING = """\
  - {stage: train, epochs: 10, lr: 0.05}
"""
_STAGES = """\
  - {{stage: eval}}
  - {{stage: prune, method: {method}{params}}}
  - {{stage: finetune, epochs: 5}}
  - {{stage: eval}}
  - {{stage: compare, fail_if: top1_drop > 2.0}}
"""


def new(
    output: Output,
    out: Annotated[Path | None, Argument("[FILE]", "File to write; default: standard output.")] = None,
    model: Annotated[
        str | None, Option(help=f"Architecture as source:name, or a weights file. [default: {_MODEL}]")
    ] = None,
    data: Annotated[str | None, Option(help=f"Data set. [default: {_DATA}]")] = None,
    method: Annotated[str | None, Option(help=f"Pruning method. [default: {_METHOD}]")] = None,
    ratio: Annotated[
        float | None, Option(help=f"How much it removes, or leaves. [default: {_SHARE}]", share=True)
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Writes a recipe to start from."""
    if out is not None:
        check_writable(out, force)
    asks = not (model or data or method or ratio) and output.mode == "human"
    if asks and sys.stdin.isatty() and sys.stdout.isatty():
        out, answers = _ask(output, out, force)
    else:
        answers = (model or _MODEL, data or _DATA, method or _METHOD, _SHARE if ratio is None else ratio)
    text = recipe_by(*answers)
    from prunecli.recipe.loader import parse_yaml

    deliver(output, text, parse_yaml(text, "new recipe").data, out, force=force)
    if out is not None:
        after_recipe(output, out, answers[0])


def deliver(output: Output, text: str, document: Any, out: Path | None, *, force: bool) -> None:
    """Writes a text to a file, or to standard output."""
    if out is None:
        output.document(document)
        output.text(text)
        return
    check_writable(out, force)
    from prunecli.checkpoint.durable import write_text_atomically

    write_text_atomically(out, text, replace=force)
    output.document({"wrote": str(out)})
    output.note(f"wrote {out}")


def recipe_by(model: str, data: str, method: str, share: float) -> str:
    """The text of a recipe, which has been checked.

    Args:
        model: A reference, or a weights file.
        data: A data set, or a path that is recognised.
        method: A pruning method.
        share: How much it removes or leaves, by what it calls that.

    Raises:
        PruneError: One of them does not exist, or is out of bounds.
    """
    from prunecli.methods.registry import get_method
    from prunecli.pipeline.run import check_plan
    from prunecli.recipe.loader import parse_yaml
    from prunecli.recipe.resolve import resolve
    from prunecli.recipe.writing import value_text

    is_file = _is_file(model)
    _check_model(model)
    named = _check_data(data)
    spec, name = get_method(method), _share_of(method)
    params = f", params: {{{name}: {value_text(share)}}}" if name else ""
    params += ", epochs: 5" if spec.family == "trained" else ""
    text = (
        f"{_HEAD}model:\n  {'weights' if is_file else 'ref'}: {value_text(model)}\ndata:\n  name: {value_text(named)}\n"
        f"seed: 0\nstages:\n{'' if is_file else _TRAINING}{_STAGES.format(method=method, params=params)}"
    )
    check_plan(resolve(parse_yaml(text, "new recipe"), confined=False))
    return text


def _ask(output: Output, out: Path | None, force: bool) -> tuple[Path, tuple[str, str, str, float]]:
    """Asks for everything; each answer is checked at once, and nothing is written before the last.

    Raises:
        KeyboardInterrupt: The user gives up.
    """
    from typer.exceptions import Abort

    output.note("A recipe in a few questions; Enter takes what stands in brackets, Ctrl-C writes nothing.")
    try:
        model = _asked("Network, as source:name or a weights file", _MODEL, _check_model)
        data = _asked("Data set, by name or the path of what you have", _DATA, _check_data)
        method = _asked("Pruning method", _METHOD, _check_method)
        share = _SHARE
        if name := _share_of(method):
            share = float(_asked(_question(method, name), f"{_SHARE:g}", lambda text: _check_share(text, method)))
        if out is None:
            out = Path(_asked("File to write", _FILE, lambda text: check_writable(Path(text), force)))
    except Abort as error:
        raise KeyboardInterrupt from error
    return out, (model, data, method, share)


def _asked(question: str, default: str, check: Callable[[str], object]) -> str:
    """An answer that passes a check, asked for as often as it takes."""
    import typer

    while True:
        answer = str(typer.prompt(question, default=default, err=True)).strip()
        try:
            check(answer)
        except PruneError as error:
            print(f"  {error}", file=sys.stderr)
        else:
            return answer


def _is_file(model: str) -> bool:
    return ":" not in model or Path(model).exists()


def _check_model(model: str) -> None:
    if _is_file(model):
        from prunecli.checkpoint.confinement import stays_inside
        from prunecli.models.whereabouts import whereabouts

        found = whereabouts(model, None)
        if found is not None and found.missing:
            raise RecipeError(found.missing)
        if not stays_inside(model, Path()):
            raise RecipeError(f"{model}: a recipe names networks of this folder or below; start from there, or copy it")
        return
    from prunecli.models.catalog import split_reference

    split_reference(model)


def _check_data(data: str) -> str:
    from prunecli.data.catalog import find_data, is_named
    from prunecli.data.naming import named_data

    named = data if is_named(data) else named_data(data)
    find_data(named)
    return named


def _check_method(method: str) -> None:
    from prunecli.methods.registry import get_method

    get_method(method)


def _check_share(text: str, method: str) -> None:
    from prunecli.recipe.loader import Document
    from prunecli.recipe.resolve import Override, resolve

    path = ("stages", 0, "params", str(_share_of(method)))
    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    document = Document({"stages": [{"stage": "prune", "method": method}]}, "answer")
    resolve(document, [Override(path, value, f"--{path[-1]}")])


def _share_of(method: str) -> str | None:
    """What a method calls the share that it removes or leaves, if it has one."""
    from prunecli.methods.registry import get_method
    from prunecli.recipe.fields import fields_of

    names = {field.name for field in fields_of(get_method(method).params_class)}
    return next((name for name in _SHARES if name in names), None)


def _question(method: str, name: str) -> str:
    from prunecli.methods.registry import get_method
    from prunecli.recipe.fields import fields_of

    doc = next(field.doc for field in fields_of(get_method(method).params_class) if field.name == name)
    return f"{name} ({' '.join(doc.split()).rstrip('.')})"
