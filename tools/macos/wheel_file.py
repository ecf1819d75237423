"""A wheel on disk: its name, its metadata, its files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from functools import cached_property
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename


class NotOurWheel(Exception):
    """The file is no wheel of this package for macOS."""


def digest(data: bytes) -> str:
    """As RECORD has it."""
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={encoded.decode().rstrip('=')}"


@dataclass(frozen=True)
class Wheel:
    path: Path

    @cached_property
    def files(self) -> dict[str, bytes]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise NotOurWheel(f"no wheel: {error}") from None

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
            raise NotOurWheel(f"it holds {found or 'no module _ext'}")
        return found[0]

    @cached_property
    def python(self) -> str:
        """CPython's version by the module's name, "3.11"."""
        abi = self.module.split(".")[1]
        version = re.fullmatch(r"cpython-3(\d+)-darwin", abi)
        if not version:
            raise NotOurWheel(f"{self.module} is not a module for CPython 3 on macOS")
        return f"3.{version[1]}"

    def info(self, name: str) -> str:
        """Text of a file of the wheel's dist-info folder.

        Raises:
            NotOurWheel: it is not there.
        """
        found = [path for path in self.files if path.endswith(f".dist-info/{name}")]
        if len(found) != 1:
            raise NotOurWheel(f"it holds {found or f'no {name}'}")
        return self.files[found[0]].decode()

    @cached_property
    def metadata(self) -> Message:
        return Parser().parsestr(self.info("METADATA"))

    @cached_property
    def about(self) -> Message:
        """What WHEEL says."""
        return Parser().parsestr(self.info("WHEEL"))

    @cached_property
    def mlx(self) -> str:
        """The MLX that the metadata pins.

        Raises:
            NotOurWheel: it pins none, or several.
        """
        requires = map(Requirement, self.metadata.get_all("Requires-Dist") or [])
        pins = [r.specifier for r in requires if r.name == "mlx" and r.marker is None]
        exact = [pin.version for pin in pins[0] if pin.operator == "=="] if len(pins) == 1 else []
        if len(exact) != 1:
            raise NotOurWheel(f"it pins no one MLX: {', '.join(map(str, pins)) or 'none'}")
        return exact[0]

    def metadata_misses(self) -> list[str]:
        """What of the name, the folder, METADATA, WHEEL and entry points does not agree."""
        name, version, build, _ = parse_wheel_filename(self.path.name)
        folders = {path.split("/")[0] for path in self.files if ".dist-info/" in path}
        wanted = {
            "name": (canonicalize_name(self.metadata["Name"] or ""), name),
            "version": (self.metadata["Version"], str(version)),
            "folder": (folders, {f"{self.path.name.split('-')[0]}-{version}.dist-info"}),
            "build tag in the name": ("".join(map(str, build)), f"1mlx{self.mlx}"),
            "build tag in WHEEL": (self.about["Build"], f"1mlx{self.mlx}"),
            "Wheel-Version": ((self.about["Wheel-Version"] or "").split(".")[0], "1"),
            "Root-Is-Purelib": (self.about["Root-Is-Purelib"], "false"),
        }
        misses = [f"{what}: {a}, not {b}" for what, (a, b) in wanted.items() if a != b]
        if f"{self.python}.0" not in SpecifierSet(self.metadata["Requires-Python"] or ""):
            misses.append(f"Requires-Python: {self.metadata['Requires-Python']}")
        if "mlx-sdpa-ext = mlx_sdpa_ext_cli:main" not in self.info("entry_points.txt"):
            misses.append("no command mlx-sdpa-ext")
        return misses

    def record_misses(self) -> list[str]:
        """Files that RECORD lacks, adds, or gives a wrong hash."""
        recorded = {row[0]: row[1] for row in csv.reader(io.StringIO(self.info("RECORD")))}
        misses = [f"{name} is only in RECORD" for name in recorded.keys() - self.files.keys()]
        for name, data in self.files.items():
            if name not in recorded:
                misses.append(f"{name} is not in RECORD")
            elif not name.endswith("/RECORD") and recorded[name] != digest(data):
                misses.append(f"{name} has another hash")
        return misses
