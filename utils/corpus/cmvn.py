"""Kaldi's CMVN statistics, of each speaker or of all: a matrix (2, mel_dim + 1) of sums and squares of frames."""

from pathlib import Path

import numpy as np

from utils.corpus.normalization import MEAN_ONLY, NORMALIZATION_FILE, Normalizer, mean_and_std, scope
from utils.corpus.speakers import EVERYBODY
from utils.kaldi.matrices import BINARY_MARK, BinaryMatrix, Unreadable
from utils.kaldi.read_archives import archive_path, scan_archive
from utils.system.errors import InputError
from utils.system.reading import read_span

CMVN = "cmvn.scp"
SPEAKER, GLOBAL = "speaker", "global"
ROUNDING = 1e-4  # of float32, relative to the squares


def is_statistics(matrix: np.ndarray) -> bool:
    """Whether a matrix (2, mel_dim + 1) is Kaldi's statistics: sums and a count of frames; squares and 0."""
    if matrix.shape[0] != 2 or matrix.shape[1] < 2 or matrix[0, -1] < 1 or matrix[1, -1] != 0:
        return False
    (*sums, frames), (*squares, _) = matrix.astype(np.float64)
    return bool((np.square(sums) <= np.multiply(squares, frames) * (1 + ROUNDING)).all())


def load_normalizer(path: Path, norm: str | None = None) -> Normalizer:
    """What --norm_from names: a normalization.json, Kaldi's statistics, or a directory that holds either.

    Args:
        path: statistics by speaker are an archive or an .scp; those of all are a file with one matrix.
        norm: for Kaldi's statistics, the mode; by default they remove the mean only, as Kaldi's apply-cmvn does.

    Raises:
        InputError: the file is missing or damaged, or `norm` does not fit it.
    """
    if path.is_dir() and not (path / NORMALIZATION_FILE).exists() and (path / CMVN).exists():
        path = path / CMVN
    file, form = archive_path(path)
    is_one_matrix = file.is_file() and read_span(file, 0, 16).lstrip().startswith((BINARY_MARK, b"["))
    if not is_one_matrix and form == "blogmel":
        if norm:
            raise InputError("--norm and --norm_from exclude each other, but for statistics of Kaldi's")
        return Normalizer.load(path)
    over = GLOBAL if is_one_matrix else SPEAKER
    mode = norm or f"{over}{MEAN_ONLY}"
    if scope(mode) != over:
        raise InputError(f"{path} holds statistics for --norm {over} or {over}{MEAN_ONLY}, not {mode}")
    matrices = {EVERYBODY: BinaryMatrix(str(file), 0).read()} if is_one_matrix else _read_all(path)
    statistics = {}
    for name, matrix in matrices.items():
        if not is_statistics(matrix):
            raise InputError(f"{path}: {name} is a matrix of {matrix.shape}, not Kaldi's statistics of frames")
        statistics[name] = mean_and_std(matrix.astype(np.float64), mode)
    return Normalizer(mode, file.name if over == SPEAKER else "", statistics)


def _read_all(archive: Path) -> dict[str, np.ndarray]:
    """Every matrix of an archive. Raises InputError where one cannot be read, or there is none."""
    matrices = {}
    for entry in scan_archive(archive):
        if isinstance(entry.matrix, Unreadable):
            raise InputError(entry.matrix.reason, entry.location)
        matrices[entry.id] = entry.matrix.read()
    if not matrices:
        raise InputError(f"{archive} holds no statistics")
    return matrices
