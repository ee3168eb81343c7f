"""Check a built site without a network: links, anchors, public names, and that nothing is loaded from elsewhere.

python docs/check_site.py site
"""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urldefrag

ROOT = Path(__file__).parents[1]
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
NOT_LOADED = {"canonical", "next", "prev", "index", "search", "author", "license"}  # kinds of <link>
FAR = re.compile(r"(https?:)?//", re.IGNORECASE)
FAR_IN_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)


class Page(HTMLParser):
    """The links, anchors and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what the tag refers to."""
        found = {name: value for name, value in attributes if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and "href" in found and not NOT_LOADED & set(found.get("rel", "").split()):
            self.loads.append(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])


def faults(site: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each file that is loaded from elsewhere."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [f"{path.name}: there is no page in it" for path in [site] if not pages]
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        found += [f"{here} loads {url} from elsewhere" for url in page.loads if FAR.match(url)]
        for link in [*page.links, *page.loads]:
            address, anchor = urldefrag(link)
            if FAR.match(link) or re.match(r"[a-z]+:", address):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
            if not target.is_file():
                found.append(f"{here} links to {link}: there is no such file")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{here} links to {link}: there is no such anchor")
    for path in sorted(site.rglob("*.css")):
        for url in FAR_IN_CSS.findall(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(site)} loads {url} from elsewhere")
    return found


def public_names() -> list[str]:
    """Full names of all that the package's facades export."""
    facades = sorted((ROOT / "latent_mixup").rglob("__init__.py"))
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in facades]
    return [f"{name}.{public}" for name in names for public in getattr(import_module(name), "__all__", [])]


def missing_names(site: Path, names: list[str]) -> list[str]:
    """Public names that have no anchor on a page of the API reference."""
    anchors = {
        anchor for path in (site / "api").glob("*.html") for anchor in Page(path.read_text(encoding="utf-8")).anchors
    }
    return [f"{name} is on no page of the API reference" for name in names if not {name, f"module-{name}"} & anchors]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="folder with the built pages")
    folder = parser.parse_args().site
    wrong = [*faults(folder), *missing_names(folder, public_names())]
    print(
        "\n".join(wrong) or f"{len(list(folder.rglob('*.html')))} pages, {len(public_names())} public names: all there"
    )
    sys.exit(bool(wrong))
