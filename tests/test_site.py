"""The docs site, without building it: its checker finds faults, and its pages name all that they should."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from latent_mixup import policies

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def check_site():
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "index.html").write_text(
        '<h1 id="top">x</h1><p id="pkg.name"></p><a href="../index.html#a b">y</a>'
    )
    (tmp_path / "style.css").write_text("p { background: url(picture.png) }")
    (tmp_path / "index.html").write_text(
        '<link rel="stylesheet" href="style.css?v=1"><p id="a b"><a href="https://example.org">far</a>'
        '<a href="api/index.html#top">z</a><a href="#a%20b">here</a><a href="mailto:a@example.org">m</a>'
    )
    return tmp_path


def test_a_whole_site_has_no_fault(check_site, site):
    assert check_site.faults(site) == []
    assert check_site.missing_names(site, ["pkg.name"]) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="gone.html">', "links to gone.html: there is no such file"),
        ('<a href="api/index.html#gone">', "links to api/index.html#gone: there is no such anchor"),
        ('<a href="#gone">', "links to #gone: there is no such anchor"),
        ('<img src="gone.png">', "links to gone.png: there is no such file"),
        ('<script src="https://cdn.example.org/x.js">', "loads https://cdn.example.org/x.js from elsewhere"),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', "loads //fonts.example.org/x.css from elsewhere"),
    ],
)
def test_a_fault_is_found(check_site, site, added, fault):
    page = site / "index.html"
    page.write_text(page.read_text(encoding="utf-8") + added)
    assert check_site.faults(site) == [f"index.html {fault}"]


@pytest.mark.parametrize("rule", ["@import 'https://example.org/x.css';", "p { src: url(https://example.org/font) }"])
def test_a_font_from_elsewhere_is_found(check_site, site, rule):
    (site / "style.css").write_text(rule)
    (fault,) = check_site.faults(site)
    assert fault.startswith("style.css loads https://example.org/")


def test_an_empty_folder_and_a_missing_name_are_faults(check_site, tmp_path, site):
    assert check_site.faults(site / "api" / "nothing")
    assert check_site.missing_names(site, ["pkg.gone"]) == ["pkg.gone is on no page of the API reference"]


def test_every_facade_has_its_page(check_site):
    """The directive describes every name of a facade's ``__all__``; the build is checked name by name."""
    described = {
        name
        for path in (DOCS / "api").glob("*.rst")
        for name in re.findall(r":: (\S+)", path.read_text(encoding="utf-8"))
    }
    assert {name.rsplit(".", 1)[0] for name in check_site.public_names()} <= described


def test_the_gallery_shows_every_part_of_a_policy():
    shown = "".join(re.findall(r"```{mixes}\n(.*?)```", (DOCS / "gallery.md").read_text(encoding="utf-8"), re.DOTALL))
    makers = [value for value in vars(policies).values() if inspect.isclass(value)]
    parts = {each.__name__ for each in makers} - {"BankView", "Draw", "Policy"} | {"Prior"}
    assert {part for part in parts if f"{part}(" not in shown} == set()
    assert {name for name in policies.NAMED if f'named("{name}")' not in shown} == set()
    fields = {field.name for field in dataclasses.fields(policies.Policy)} - {"prior"}  # said by Prior
    assert {name for name in fields if f"{name}=" not in shown} == set()
