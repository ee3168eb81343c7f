"""Names, local folders and Hub repositories => files; files read with clear errors, and written whole or not at all."""

from latent_mixup.hub.names import (
    MAIN_FILE,
    HubError,
    Kind,
    bundled_names,
    commit_of,
    download_file,
    is_hub_id,
    locate,
)
from latent_mixup.hub.reading import FormatError, is_count, read_json, safe_path, sha256, tensors_sha256
from latent_mixup.hub.writing import Writer, save_tensors, sweep, write_folder

__all__ = [
    "MAIN_FILE",
    "FormatError",
    "HubError",
    "Kind",
    "Writer",
    "bundled_names",
    "commit_of",
    "download_file",
    "is_count",
    "is_hub_id",
    "locate",
    "read_json",
    "safe_path",
    "save_tensors",
    "sha256",
    "sweep",
    "tensors_sha256",
    "write_folder",
]
