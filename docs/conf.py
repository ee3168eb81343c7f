"""How the site is built: ``python -m sphinx -W -n docs site``, with the extra ``docs``; ``check_site.py`` checks it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import latent_mixup

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))
shutil.copytree(DOCS.parent / "examples" / "notebooks", DOCS / "notebooks", dirs_exist_ok=True)

project = "latent-mixup"
author = "The latent-mixup developers"
copyright = author  # no year: nobody would change it
version = release = latent_mixup.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "myst_nb", "facade", "mathml", "mixes"]
smartquotes = False  # -- is an option
exclude_patterns = ["extensions", "_mixes"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}

myst_enable_extensions = ["attrs_inline", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks come with their pictures, and tests run them

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_mock_imports = ["lightning", "transformers"]  # a base class each; importing them takes longer than the rest
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # signatures have them
napoleon_attr_annotations = False  # signatures have them
napoleon_use_ivar = True
python_use_unqualified_type_names = True

nitpick_ignore_regex = [
    # other projects: their sites are not asked where a name is
    ("py:.*", r"(torch|PIL|numpy|collections|pathlib|typing_extensions|huggingface_hub|lightning|argparse)\..*"),
    ("py:.*", "Tensor|Path|inf"),
    # type variables; and records of one module that another one's signature mentions
    ("py:class", r"(latent_mixup\.[\w.]+\.)?[A-Z]"),
    ("py:class", r"latent_mixup\.[\w.]+\.(CheckResult|CodeFiles|Curvature|Errors|Look|TargetLoss|Training)"),
]

html_theme = "furo"
html_title = "latent-mixup"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
