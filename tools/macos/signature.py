"""The code signature of a Mach-O file, as macOS on arm64 asks for it: hashes of every page.

Layout: cs_blobs.h in Apple's XNU sources; all numbers are big-endian.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from macos.system_libraries import parse

EMBEDDED_SIGNATURE, CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
SHA256 = 2  # CS_HASHTYPE_SHA256
ADHOC = 0x2  # CS_ADHOC
PAGE_BITS = (12, 14)  # 4 and 16 KiB


@dataclass(frozen=True)
class Page:
    """A page of the file, and where in the file its SHA-256 stands."""

    begin: int
    end: int
    hash_at: int


@dataclass(frozen=True)
class CodeDirectory:
    adhoc: bool
    code_limit: int  # bytes of the file that are signed
    pages: tuple[Page, ...]


def code_directory(module: Path) -> CodeDirectory:
    """The SHA-256 code directory of a file's embedded signature.

    Raises:
        ValueError: there is none, or its blobs do not lie where the kernel looks for them.
    """
    binary = parse(module)
    if not binary.has_code_signature:
        raise ValueError("the file has no signature")
    data, command = module.read_bytes(), binary.code_signature
    if command.data_offset + command.data_size != len(data):
        raise ValueError("the signature does not end the file")
    try:
        return _code_directory(data, command.data_offset, command.data_size)
    except struct.error as error:
        raise ValueError(f"the signature is damaged: {error}") from None


def _code_directory(data: bytes, at: int, room: int) -> CodeDirectory:
    magic, length, count = struct.unpack_from(">III", data, at)
    if magic != EMBEDDED_SIGNATURE:
        raise ValueError(f"the signature begins with {magic:#x}, not {EMBEDDED_SIGNATURE:#x}")
    if length > room:
        raise ValueError("the signature is larger than its place")
    for index in range(count):
        _, offset = struct.unpack_from(">II", data, at + 12 + 8 * index)
        magic, size = struct.unpack_from(">II", data, at + offset)
        if offset + size > length:
            raise ValueError("a blob of the signature ends outside of it")
        if magic == CODE_DIRECTORY:
            flags, hashes, _, _, slots, limit = struct.unpack_from(">6I", data, at + offset + 12)
            hash_size, kind, _, page_bits = struct.unpack_from(">4B", data, at + offset + 36)
            if (hash_size, kind) != (32, SHA256):
                continue
            if page_bits not in PAGE_BITS or slots != -(-limit >> page_bits):
                raise ValueError(f"{slots} hashes of pages of 2^{page_bits} for {limit} bytes")
            if hashes + hash_size * slots > size:
                raise ValueError("page hashes lie outside of the code directory")
            first = at + offset + hashes
            return CodeDirectory(
                bool(flags & ADHOC),
                limit,
                tuple(
                    Page(n << page_bits, min(n + 1 << page_bits, limit), first + hash_size * n)
                    for n in range(slots)
                ),
            )
    raise ValueError("the signature has no SHA-256 code directory")


def wrong_pages(module: Path, directory: CodeDirectory) -> list[int]:
    """Numbers of the pages whose bytes do not have the hash that was signed."""
    data = module.read_bytes()
    return [
        number
        for number, page in enumerate(directory.pages)
        if hashlib.sha256(data[page.begin : page.end]).digest()
        != data[page.hash_at : page.hash_at + 32]
    ]
