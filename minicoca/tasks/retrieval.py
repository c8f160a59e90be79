"""Find images by a sentence or by another image (paper section 4.2.2)."""

import numpy as np
from PIL import Image, ImageDraw

from ..images import load_image

CELL, LABEL, EDGE = 128, 30, 4


def nearest(query_vectors, vectors, k):
    """Indices [queries, k] and cosines of the k vectors nearest each query, best first."""
    similarity = query_vectors @ vectors.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarity, order, 1)


def thumbnail(path):
    """The whole of a file's picture as it stands on a contact sheet. Raises as `load_image`."""
    return Image.fromarray(load_image(path, CELL - 2 * EDGE, crop="squash"))


def contact_sheet(images, labels, columns=6):
    """PIL images with a label under each, in rows, as one picture."""
    rows = -(-len(images) // columns)
    width = min(columns, len(images)) * CELL
    sheet = Image.new("RGB", (width, rows * (CELL + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = i % columns * CELL, i // columns * (CELL + LABEL)
        enlarged = image.resize((CELL - 2 * EDGE, CELL - 2 * EDGE), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x + EDGE, y + EDGE))
        draw.text((x + EDGE, y + CELL), label[:40], fill="black")
    return sheet
