"""The Hugging Face Hub: names => local folders, checked downloads, uploads."""

from latent_mixup.hub.cache import check_cached, commit_of, origin_of, stated_origin, with_origin
from latent_mixup.hub.download import Needed
from latent_mixup.hub.errors import HubError
from latent_mixup.hub.names import (
    MAIN_FILE,
    REPO_TYPE,
    WEIGHTS_FILE,
    HubOptions,
    Kind,
    bundled_names,
    download_file,
    is_hub_id,
    locate,
)
from latent_mixup.hub.upload import Published, files_to_push, push_folder

__all__ = [
    "MAIN_FILE",
    "REPO_TYPE",
    "WEIGHTS_FILE",
    "HubError",
    "HubOptions",
    "Kind",
    "Needed",
    "Published",
    "bundled_names",
    "check_cached",
    "commit_of",
    "download_file",
    "files_to_push",
    "is_hub_id",
    "locate",
    "origin_of",
    "push_folder",
    "stated_origin",
    "with_origin",
]
