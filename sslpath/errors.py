"""The errors of sslpath: one small family, so that ``except SslpathError`` catches what we raise.

Each message says what was wrong, with which file, and what to do next.
"""


class SslpathError(Exception):
    """Any error that sslpath raises on purpose."""


class SlideError(SslpathError):
    """A slide cannot be opened or read."""


class PixelSizeError(SlideError):
    """A slide does not say how many um a pixel spans, or says something absurd."""


class TileReadError(SlideError):
    """One tile of a slide cannot be decoded; the others may still be fine."""


class AnnotationError(SslpathError):
    """An annotation file is not what it should be."""


class TableError(SslpathError):
    """A table of tiles lacks a column or its metadata, or does not fit the files beside it."""


class WeightsError(SslpathError):
    """Weights are missing, damaged, or belong to another architecture."""


class DescriptorError(SslpathError):
    """A descriptor file is missing, cut short, or does not fit the table of tiles."""


class DataError(SslpathError):
    """A data set cannot be downloaded, fails its checksum, or is not laid out as expected."""


class ChecksumError(DataError):
    """A file came, or was there, with another checksum than it should have."""


class BusyError(SslpathError):
    """Another process is working in the folder."""


class ConfigError(SslpathError):
    """Settings contradict each other or the data at hand."""


def counted(n: int, one: str) -> str:
    """A number with its noun, as messages give it.

    Example:
        >>> counted(1, "slide"), counted(1200, "tile")
        ('1 slide', '1,200 tiles')
    """
    return f"{n:,} {one}" if n == 1 else f"{n:,} {one}s"
