"""Names, local folders and Hub repositories => files; files read with clear errors, and written whole or not at all."""

from latent_mixup.hub.cache import commit_of, origin_of, stated_origin, with_origin
from latent_mixup.hub.download import Needed
from latent_mixup.hub.errors import HubError
from latent_mixup.hub.names import (
    MAIN_FILE,
    REPO_TYPE,
    WEIGHTS_FILE,
    Kind,
    bundled_names,
    download_file,
    is_hub_id,
    locate,
)
from latent_mixup.hub.reading import FormatError, is_count, read_json, safe_path, sha256, tensors_sha256
from latent_mixup.hub.upload import Published, files_to_push, push_folder
from latent_mixup.hub.writing import Writer, save_tensors, sweep, write_folder

__all__ = [
    "MAIN_FILE",
    "REPO_TYPE",
    "WEIGHTS_FILE",
    "FormatError",
    "HubError",
    "Kind",
    "Needed",
    "Published",
    "Writer",
    "bundled_names",
    "commit_of",
    "download_file",
    "files_to_push",
    "is_count",
    "is_hub_id",
    "locate",
    "origin_of",
    "push_folder",
    "read_json",
    "safe_path",
    "save_tensors",
    "sha256",
    "stated_origin",
    "sweep",
    "tensors_sha256",
    "with_origin",
    "write_folder",
]
