"""What reports of studies have in common: strict fields, and how they are written."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Plain data that is what it says: no other fields, no changes, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Study(Strict):
    """The report of a study."""

    def document(self) -> dict[str, Any]:
        """The report as plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(self.document(), indent=2) + "\n"
