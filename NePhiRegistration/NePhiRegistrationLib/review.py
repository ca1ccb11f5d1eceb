"""Reviews of a result: signed with the reviewer's name, stored with the scene and next to the saved report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256

from .i18n import tr as _

_ATTRIBUTE = "NePhi.Reviews"  # of the forward transform, JSON


@dataclass(frozen=True)
class Review:
    """``date``: ISO 8601 with the time zone."""

    accepted: bool
    name: str
    date: str
    comment: str = ""

    @property
    def verdict(self) -> str:
        return _("Accepted") if self.accepted else _("Rejected")

    @property
    def text(self) -> str:
        """One line for people."""
        when = datetime.fromisoformat(self.date).strftime("%Y-%m-%d %H:%M")
        text = _("{verdict} by {name}, {date}").format(verdict=self.verdict, name=self.name, date=when)
        return f"{text}: {self.comment}" if self.comment else f"{text}."


def reviews(outputs) -> list[Review]:
    """All of them; the last one counts."""
    return reviews_of(outputs.forward)


def reviews_of(forward) -> list[Review]:
    """Of the result that this forward transform belongs to."""
    return [Review(**entry) for entry in json.loads(forward.GetAttribute(_ATTRIBUTE) or "[]")]


def sign(outputs, accepted: bool, name: str, comment: str = "") -> Review:
    """Add a review of now; earlier ones stay. Raises ValueError with one line without a name, or a reason to reject."""
    name, comment = " ".join(name.split()), " ".join(comment.split())
    if not name:
        raise ValueError(_("Enter your name first: the review is signed with it."))
    if not accepted and not comment:
        raise ValueError(_("Enter in the comment why the result is rejected."))
    made = Review(accepted, name, datetime.now().astimezone().isoformat(timespec="seconds"), comment)
    entries = [asdict(review) for review in (*reviews(outputs), made)]
    outputs.forward.SetAttribute(_ATTRIBUTE, json.dumps(entries))
    return made


def as_file(found: list[Review], report: bytes) -> str:
    """JSON of the reviews, with the identification of their report."""
    entries = [
        {"verdict": "accepted" if review.accepted else "rejected"}
        | {key: value for key, value in asdict(review).items() if key != "accepted"}
        for review in found
    ]
    return json.dumps({"reviews": entries, "report_sha256": sha256(report).hexdigest()}, indent=2, ensure_ascii=False)
