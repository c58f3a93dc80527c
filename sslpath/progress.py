"""Whether progress bars are drawn: where somebody sees them move."""

import sys


def hide_bar(progress: bool) -> bool:
    """What ``tqdm`` takes as ``disable``: bars are for terminals and notebooks, not for log files.

    Args:
        progress: Whether the caller wants a bar.

    Example:
        >>> hide_bar(False)
        True
    """
    return not (progress and (sys.stderr.isatty() or "ipykernel" in sys.modules))
