"""Two kinds of small pictures, without a plotting library: a matrix as PNG, bars as SVG."""

import struct
import zlib
from pathlib import Path

import numpy as np

LIGHT, DARK = np.array([240, 250, 248]), np.array([0, 60, 56])


def save_matrix(path: Path, matrix: np.ndarray, side: int = 360) -> None:
    """A square matrix, dark where it is small, shrunk to ``side`` pixels by averaging."""
    edges = np.linspace(0, len(matrix), side + 1, dtype=int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(matrix, edges, axis=0), edges, axis=1)
    counts = np.diff(edges, append=len(matrix))
    means = sums / np.outer(counts, counts)
    low, high = np.percentile(means, [1, 99])
    save_png(path, (np.clip((means - low) / (high - low), 0, 1) * 63).astype(np.uint8))


def save_png(path: Path, levels: np.ndarray) -> None:
    """Levels from 0 (dark) to 63 (light) as an indexed PNG."""
    height, width = levels.shape
    palette = np.linspace(DARK, LIGHT, 64).astype(np.uint8)
    rows = np.pad(levels, ((0, 0), (1, 0)))  # each row begins with its filter: none
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        chunk(b"PLTE", palette.tobytes()),
        chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A piece of a PNG: its length, kind, content and check sum."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def save_bars(path: Path, counts: np.ndarray, title: str) -> None:
    """Counts as bars of an SVG, beginning with value 0 on the left."""
    width, height = 3 * len(counts), 220
    tops = height * (1 - counts / counts.max())
    steps = "".join(f"V{top:.1f}h3" for top in tops)
    ticks = "".join(
        f'<text x="{3 * value}" y="{height + 20}" text-anchor="middle">{value}</text>'
        for value in range(0, len(counts) + 1, 64)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-30 -40 {width + 60} {height + 75}"'
        ' font-family="system-ui, sans-serif" font-size="15" role="img" aria-labelledby="title">\n'
        f'  <title id="title">{title}</title>\n'
        f'  <rect x="-30" y="-40" width="{width + 60}" height="{height + 75}" rx="10"'
        ' fill="#fafafa"/>\n'
        f'  <text x="0" y="-14" fill="#455a64" font-weight="600">{title}</text>\n'
        f'  <path d="M0 {height}{steps}V{height}z" fill="#00796b"/>\n'
        f'  <path d="M0 {height}h{width}" stroke="#455a64" fill="none"/>\n'
        f'  <g fill="#455a64">{ticks}</g>\n'
        "</svg>\n"
    )
