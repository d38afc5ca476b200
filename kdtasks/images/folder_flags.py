"""The flags of tools/test.py by which a task takes a folder of images."""

import argparse


class _Folder(argparse.Action):
    """Sets ``folder``, and ``measured`` to what the flag stands for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.folder, namespace.measured = values, self.const


def add_folder_flags(parser: argparse.ArgumentParser, images: str = "") -> None:
    """Add ``--inputs FOLDER`` and ``--out FOLDER``; with ``images``, ``--images FOLDER`` too.

    They become the arguments ``folder`` and ``out`` of a task's ``predict``, and ``measured``,
    where both of the first two are there: whether it was ``--images``.

    Args:
        parser: of the task's flags.
        images: what becomes of images that show what should come out, which are compared with what
            the model makes of them; empty: the task compares nothing.
    """
    folders = parser.add_mutually_exclusive_group()
    inputs = "images for the model as they are; nothing is compared"
    if images:
        folders.add_argument(
            "--images", metavar="FOLDER", dest="folder", action=_Folder, const=True, help=images
        )
        folders.add_argument(
            "--inputs", metavar="FOLDER", dest="folder", action=_Folder, const=False, help=inputs
        )
        parser.set_defaults(measured=False)
    else:
        folders.add_argument("--inputs", metavar="FOLDER", dest="folder", help=inputs)
    parser.add_argument("--out", metavar="FOLDER", help="a new folder, for what the model makes")
