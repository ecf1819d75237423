"""A wheel on disk: its name, its metadata, its files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename


class NotOurWheel(Exception):
    """The file is no wheel of this package for macOS."""


@dataclass(frozen=True)
class Wheel:
    path: Path

    @cached_property
    def files(self) -> dict[str, bytes]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise NotOurWheel(f"{self.path.name} is no wheel: {error}") from None

    @cached_property
    def tags(self) -> set[str]:
        """Of the file's name."""
        return {str(tag) for tag in parse_wheel_filename(self.path.name)[3]}

    @cached_property
    def module(self) -> str:
        """Name of the extension module.

        Raises:
            NotOurWheel: there is none, or more than one.
        """
        found = [n for n in self.files if n.startswith("mlx_sdpa_ext/_ext.") and n.endswith(".so")]
        if len(found) != 1:
            raise NotOurWheel(f"{self.path.name} holds {found or 'no module _ext'}")
        return found[0]

    @cached_property
    def python(self) -> str:
        """CPython's version by the module's name, "3.11"."""
        abi = self.module.split(".")[1]
        if not (abi.startswith("cpython-3") and abi.endswith("-darwin")):
            raise NotOurWheel(f"{self.module} is not a module for CPython 3 on macOS")
        return f"3.{abi.split('-')[1][1:]}"

    def info(self, name: str) -> str:
        """Text of a file of the wheel's dist-info folder."""
        (path,) = (n for n in self.files if n.endswith(f".dist-info/{name}"))
        return self.files[path].decode()

    @cached_property
    def mlx(self) -> str:
        """The MLX that the metadata pins.

        Raises:
            NotOurWheel: it pins none.
        """
        requires = Parser().parsestr(self.info("METADATA")).get_all("Requires-Dist") or []
        for requirement in map(Requirement, requires):
            if requirement.name == "mlx" and requirement.marker is None:
                (pin,) = requirement.specifier
                if pin.operator == "==":
                    return pin.version
        raise NotOurWheel(f"the metadata of {self.path.name} pins no MLX")

    def record_misses(self) -> list[str]:
        """Files that RECORD lacks, adds, or gives a wrong hash."""
        recorded = {row[0]: row[1] for row in csv.reader(io.StringIO(self.info("RECORD")))}
        misses = [f"{name} is only in RECORD" for name in recorded.keys() - self.files.keys()]
        for name, data in self.files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            if name not in recorded:
                misses.append(f"{name} is not in RECORD")
            elif not name.endswith("/RECORD") and recorded[name] != f"sha256={digest}":
                misses.append(f"{name} has another hash")
        return misses
