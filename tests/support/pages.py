"""Reads pages back, for tests that hold them to what they promise."""

from html.parser import HTMLParser
from pathlib import Path

__all__ = ["Page", "read_page"]


class Page(HTMLParser):
    """Checks that tags nest, and collects text, tags and the addresses of everything fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.stack.append(tag)
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self.addresses += [v or "" for k, v in attrs if k in {"src", "href", "srcset", "action"}]
        assert not [k for k, _ in attrs if k.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.text += data


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
