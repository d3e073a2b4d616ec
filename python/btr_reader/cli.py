"""The command `btr`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from tyro.conf import FlagCreatePairsOff
from tyro.extras import SubcommandApp

from .commands import extractive as extractive_commands
from .commands.answer import answer
from .commands.bench import bench
from .commands.calibrate import calibrate
from .commands.compare_storage import compare_storage
from .commands.convert_atlas import convert_atlas
from .commands.encode import encode
from .commands.evaluate import evaluate
from .commands.index import index
from .commands.init_reader import init_reader
from .commands.make_corpus import make_corpus
from .commands.make_facts import make_facts
from .commands.retrieve import retrieve
from .commands.store import info, verify
from .commands.train import btr, deformer, teacher
from .commands.train_extractive import extractive

DESCRIPTION = "Atlas readers over binary passage tokens."


def _app() -> SubcommandApp:
    store = SubcommandApp()
    store.command(info)
    store.command(verify)
    train = SubcommandApp()
    for command in (teacher, deformer, btr, extractive):
        train.command(command)
    app = SubcommandApp()
    for command in (
        encode, index, retrieve, answer, convert_atlas, init_reader, calibrate, make_corpus, make_facts, bench,
        compare_storage,
    ):  # fmt: skip
        app.command(command)
    app.command(evaluate, name="eval")
    of_spans = SubcommandApp()
    for command in (extractive_commands.encode, extractive_commands.answer):
        of_spans.command(command)
    app.command(of_spans, name="extractive", help="Stores and answers of the encoder-only reader.")
    app.command(train, name="train", help="Trains a teacher, or a student of one.")
    app.command(store, name="store", help="Shows what is in a store, or checks it.")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `btr`; returns the exit status: 0, 1 after an error, 2 for wrong usage, 130 when interrupted.

    Errors in what the user gave are one line on stderr; with BTR_DEBUG=1 they come with their traceback.
    """
    try:
        _app().cli(prog="btr", description=DESCRIPTION, args=arguments, config=(FlagCreatePairsOff,))
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("BTR_DEBUG") == "1":
            raise
        print(f"btr: error: {_as_typed(str(error), sys.argv[1:] if arguments is None else arguments)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("btr: interrupted; what was complete is kept", file=sys.stderr)
        return 130
    return 0


def _as_typed(message: str, arguments: Sequence[str]) -> str:
    """A message about a parameter, told of the option that the user gave it by.

    >>> _as_typed("batch_size must be at least 1, got 0", ["encode", "--batch-size", "0"])
    '--batch-size must be at least 1, got 0'
    """
    name = re.match(r"[a-z_]+(?=:| must | is | exclude)", message)
    option = None if name is None else "--" + name.group().replace("_", "-")
    given = option is not None and any(argument.split("=")[0] == option for argument in arguments)
    return f"{option}{message[name.end() :]}" if given else message


if __name__ == "__main__":
    sys.exit(main())
