"""Recognises, undoes and makes the compressions that images come in, as streams with bounded memory.

Called by the archive readers for whole archives and for the layers inside them, and by ``push`` for layers that were made here. What a layer's media
type claims is the store's business; here only the first bytes count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, cast

from bulle.errors import CorruptImage, Unavailable

Compression = Literal["", "gzip", "zstd", "xz", "bzip2"]

CHUNK_BYTES = 1 << 20
_GROWTH_LIMIT, _GROWTH_ALLOWANCE_BYTES = 200, 1 << 30
_XZ_MEMORY_BYTES = 256 << 20

_MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)


class _Decoder(Protocol):
    """What the decompressors of isal, zstd, lzma and bz2 have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def detect(head: bytes) -> Compression:
    """The compression whose magic number ``head`` (at least 6 bytes of the start) begins with; "" for none of them."""
    for magic, compression in _MAGIC:
        if head.startswith(magic):
            return compression
    # A zstd stream may begin with a skippable frame.
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    return ""


def decompress_bounded(chunks: Iterable[bytes], compression: Compression, what: str) -> Iterator[bytes]:
    """As :func:`decompress`, for an archive that nobody vouches for: CorruptImage where it grows beyond all reason."""
    sizes = [0, 0]

    def counted() -> Iterator[bytes]:
        for chunk in chunks:
            sizes[0] += len(chunk)
            yield chunk

    for plain in decompress(counted(), compression, what):
        sizes[1] += len(plain)
        if compression and sizes[1] > max(_GROWTH_ALLOWANCE_BYTES, sizes[0] * _GROWTH_LIMIT):
            raise CorruptImage(f"{what} is refused", f"it decompresses to more than {_GROWTH_LIMIT} times its size")
        yield plain


def decompress(chunks: Iterable[bytes], compression: Compression, what: str) -> Iterator[bytes]:
    """The plain bytes of a stream, at most one mebibyte at a time; ``what`` names the stream in errors.

    Raises CorruptImage where the stream is damaged or ends early, Unavailable where this Python lacks the compression.
    """
    if not compression:
        yield from chunks
        return
    make, failures = _decoder(compression)
    decoder: _Decoder | None = None
    frames = 0
    for chunk in chunks:
        data = chunk
        while True:
            if decoder is None:
                # Zero padding between members is legal in xz and customary in gzip.
                data = data.lstrip(b"\0") if frames else data
                if not data:
                    break
                decoder = make()
                frames += 1
            try:
                plain = decoder.decompress(data, CHUNK_BYTES)
            except failures as error:
                raise CorruptImage(f"{what} is damaged", f"its {compression} stream cannot be decompressed ({error})") from None
            data = b""
            if plain:
                yield plain
            if decoder.eof:
                data = decoder.unused_data
                decoder = None
            elif decoder.needs_input:
                break
    if decoder is not None or not frames:
        raise CorruptImage(f"{what} is truncated", f"its {compression} stream ends early")


_Failures = tuple[type[Exception], ...]


def _decoder(compression: Compression) -> tuple[Callable[[], _Decoder], _Failures]:
    """How to make a decoder, and what it raises on bad input; imports late because most commands decompress nothing."""
    try:
        if compression == "gzip":
            from isal import igzip_lib

            # isal's stub calls its exception class an instance.
            failures: _Failures = (cast("type[Exception]", igzip_lib.error), EOFError)
            return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), failures
        if compression == "zstd":
            return _zstd_decoder()
        if compression == "xz":
            import lzma

            return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES), (lzma.LZMAError, EOFError)
        import bz2

        return bz2.BZ2Decompressor, (OSError, EOFError)
    except ImportError as error:
        raise Unavailable(f"cannot read {compression} data", f"this Python has no module {error.name!r}", "decompress the file first") from None


def _zstd_decoder() -> tuple[Callable[[], _Decoder], _Failures]:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    return zstd.ZstdDecompressor, (zstd.ZstdError, EOFError)


def compress(chunks: Iterable[bytes], compression: Literal["gzip", "zstd"]) -> Iterator[bytes]:
    """A stream, compressed: with the same library the same bytes each time, since no time and no name are written into it.

    The levels are those that a processor of today keeps up with while a network takes what comes out. Raises Unavailable.
    """
    if compression == "gzip":
        try:
            from isal import isal_zlib as library

            level = library.ISAL_DEFAULT_COMPRESSION
        except ImportError:  # there is no isal for some processors
            import zlib as library  # type: ignore[no-redef]

            level = 6
        stream = library.compressobj(level, library.DEFLATED, 31)
    else:
        stream = _zstd_compressor()
    for chunk in chunks:
        if piece := stream.compress(chunk):
            yield piece
    yield stream.flush()


def _zstd_compressor() -> Any:
    import sys

    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise Unavailable("cannot write zstd data", f"this Python has no module {error.name!r}", "use --compression gzip") from None
    return zstd.ZstdCompressor(level=3)
