"""Documents of commands as text for people: columns, widths, nothing else."""

from collections.abc import Sequence
from typing import Any


def summary_table(document: dict[str, Any]) -> str:
    """A network, layer by layer, with its totals."""
    head = ("layer", "kind", "output", "parameters", "MACs", "KiB/batch")
    total = {**document, "layer": "total", "kind": "", "output_shape": ()}
    rows = [
        (
            row["layer"],
            row["kind"],
            "x".join(map(str, row["output_shape"])),
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['activation_bytes'] / 1024:,.0f}",
        )
        for row in (*document["rows"], total)
    ]
    return columns([head, *rows])


def check_table(document: dict[str, Any]) -> str:
    """The checks, each with what it wanted and saw, and the verdict."""
    rows = [(row["name"], "ok" if row["passed"] else "FAIL", row["wanted"], row["saw"]) for row in document["checks"]]
    failed = sum(not row["passed"] for row in document["checks"])
    verdict = f"failed: {failed} of {len(rows)} checks" if failed else f"passed: {len(rows)} of {len(rows)} checks"
    return f"{columns([('check', '', 'wanted', 'saw'), *rows])}\n{verdict}"


def bench_table(document: dict[str, Any]) -> str:
    """A race: times are medians, the ratio is to mlcore's wall time."""
    head = ("contender", "ms/step", "CPU ms", "images/s", "ratio", "% of peak", "peak MiB", "first step s")
    rows = [
        (
            row["contender"],
            f"{row['wall_ms']:,.1f}",
            f"{row['cpu_ms']:,.1f}",
            f"{row['images_per_s']:,.1f}",
            f"{row['ratio']:.2f}",
            f"{row['share_pct']:.0f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['first_s']:.1f}",
        )
        for row in document["rows"]
    ]
    title = f"{document['model']}, batch {document['batch']}, {document['threads']} threads, "
    return title + f"measured peak {document['peak_gflops']:.0f} GFLOP/s\n" + columns([head, *rows])


def warm_table(document: dict[str, Any]) -> str:
    """What was compiled or found compiled."""
    rows = [(row["name"], f"{row['kernels']:,}", f"{row['seconds']:.1f}") for row in document["rows"]]
    return columns([("network", "kernels", "seconds"), *rows])


def gradcheck_table(document: dict[str, Any]) -> str:
    """The gradients, each with how far it was off."""
    rows = [
        (
            row["name"],
            "ok" if row["ok"] else "FAIL",
            f"{row['max_error']:.1e}",
            f"{row['tolerance']:.0e}",
            row["message"],
        )
        for row in document["rows"]
    ]
    return columns([("gradient", "", "error", "allowed", ""), *rows])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)
