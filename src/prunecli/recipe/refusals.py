"""What is done with mistakes in a recipe: the first ends everything, or all are kept."""

from __future__ import annotations

from prunecli.errors import PruneError


class Refusals:
    """Takes mistakes.

    Args:
        keep: Whether to keep them and go on with what is right; otherwise the first is raised.

    Attributes:
        kept: Those that were kept, in order.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self.kept: list[PruneError] = []

    def add(self, mistake: PruneError, cause: BaseException | None = None) -> None:
        """Raises a mistake, or keeps it.

        Args:
            mistake: What to say.
            cause: The exception that told of it.

        Raises:
            PruneError: The mistake, unless mistakes are kept.
        """
        if not self._keep:
            raise mistake from cause
        if str(mistake) not in map(str, self.kept):
            self.kept.append(mistake)
