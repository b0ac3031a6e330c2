"""Small PDFs, byte by byte: text at places, pages without text, a password, thousands of boxes."""

from __future__ import annotations

Text = tuple[float, float, str]  # left, baseline, words; points from below left
ENCRYPTED = b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>"


def pdf(*pages: list[Text], encrypted: bool = False, pictures: bool = False) -> bytes:
    """A PDF of letter-sized pages in 10 point Helvetica. `pictures`: a grey square in the place of all text."""
    objects = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"]
    kids = []
    for page in pages:
        content = b"0.5 g 72 72 400 600 re f" if pictures else b"\n".join(map(_shown, page))
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        box = b"/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(b"<< /Type /Page /Parent 2 0 R %s /Contents %d 0 R >>" % (box, len(objects)))
        kids.append(b"%d 0 R" % len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    return _file(objects, ENCRYPTED if encrypted else b"")


def column(left: float, top: float, *lines: str) -> list[Text]:
    return [(left, top - 12 * number, line) for number, line in enumerate(lines)]


def table(left: float, top: float, *rows: tuple[str, ...], step: float = 120) -> list[Text]:
    return [(left + step * x, top - 14 * y, cell) for y, row in enumerate(rows) for x, cell in enumerate(row)]


def _shown(text: Text) -> bytes:
    left, baseline, words = text
    escaped = words.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
    return b"BT /F1 10 Tf %.1f %.1f Td (%s) Tj ET" % (left, baseline, escaped)


def _file(objects: list[bytes], encrypt: bytes) -> bytes:
    made, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate([*objects, *([encrypt] if encrypt else [])], 1):
        offsets.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    extra = b" /Encrypt %d 0 R /ID [<41> <41>]" % len(offsets) if encrypt else b""
    trailer = b"trailer\n<< /Size %d /Root 1 0 R%s >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, extra, len(made))
    return made + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (len(offsets) + 1, table, trailer)
